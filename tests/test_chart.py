"""The Helm chart, the kustomize base and the image: rendered by the real tools, judged by the
schemas of Kubernetes, and their arguments by our own command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lodestar_fast import cli
from lodestar_fast.config import resolve

DEPLOY = Path(__file__).parent.parent / "deploy"
CHART = DEPLOY / "helm" / "lodestar"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VERSIONS = ("1.25", "1.31", "1.37")
EVERYTHING: dict[str, Any] = {
    "nameOverride": "router",
    "imagePullSecrets": [{"name": "pull"}],
    "workerUrls": ["http://a:8000", "http://b:8000"],
    "discovery": {
        "dns": ["x.svc:8000", "_http._tcp.y.svc"],
        "kubernetes": {"selector": "app=vllm,tier=gpu", "namespace": "models", "port": "8000"},
    },
    "config": "[limits]\nmax_retries = 1\n",
    "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "router"}],
    "persistence": {"enabled": True, "storageClass": "fast"},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True},
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"x": "y"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}


def example(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


CASES = {"defaults": {}, "everything": EVERYTHING, **{p.stem: example(p) for p in EXAMPLES}}


def render(values: dict[str, Any], release: str = "prod") -> list[dict[str, Any]]:
    """The chart's objects as Helm makes them; NOTES.txt is not among them."""
    helm = pytest.importorskip("helm_python")
    chart = helm.Chart.load(CHART)
    chart.validate_schema(values)
    rendered = chart.render(values, name=release, namespace="serving")
    return [
        document
        for path, text in rendered.items()
        if not path.endswith(".txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def check_schemas(objects: Iterable[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for item in objects:
        if item["kind"] == "ServiceMonitor":  # the operator's, which Kubernetes does not know
            continue
        for version in VERSIONS:
            validate(item, version, strict=True)


def check_pod(pod: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Security, probes, volumes, and that the program takes its arguments."""
    outer = pod["securityContext"]
    assert outer["runAsNonRoot"] and outer["runAsUser"] == 10001
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    inner = container["securityContext"]
    assert inner["readOnlyRootFilesystem"] and inner["allowPrivilegeEscalation"] is False
    assert inner["capabilities"] == {"drop": ["ALL"]}
    for probe, path in (("livenessProbe", "/liveness"), ("readinessProbe", "/readiness")):
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {
        "http": 30000,
        "admin": 29000,
    }
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    verb, *args = container["args"]
    assert verb == "serve"
    given = dict(arg.removeprefix("--").partition("=")[::2] for arg in args)
    for flag in ("config", "admin-key-file", "state-dir", "api-key-file", "engine-api-key-file"):
        if flag in given:
            assert any(given[flag].startswith(mount) for mount in mounts), flag
    files = {"config", "admin-key-file", "api-key-file", "engine-api-key-file"}
    usable = [arg for arg in args if arg[2:].partition("=")[0] not in files]
    assert cli.main(["check-config", "--json", *usable]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["serve"]["admin_host"] == "0.0.0.0" and config["serve"]["port"] == 30000
    grace = config["serve"]["drain_grace"]
    assert pod["terminationGracePeriodSeconds"] >= grace + 10, "the drain is not cut short"


@pytest.mark.parametrize("name", CASES)
def test_the_chart_renders_to_valid_objects(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    objects = render(CASES[name])
    check_schemas(objects)
    deployment = one(objects, "Deployment")
    check_pod(deployment["spec"]["template"]["spec"], capsys)
    config = next(o for o in objects if o["kind"] == "ConfigMap")["data"]["lodestar.toml"]
    resolve({}, {}, config, "the chart's config")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [o["spec"]["selector"] for o in objects if o["kind"] == "Service"]
    selectors += [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [
        o["spec"]["selector"]["matchLabels"] for o in objects if o["kind"] == "PodDisruptionBudget"
    ]
    assert len(selectors) == 4 and all(s.items() <= labels.items() for s in selectors)
    assert not {o["kind"] for o in objects} & {"ClusterRole", "ClusterRoleBinding"}


def test_rights_are_for_endpointslices_and_only_if_they_are_watched() -> None:
    assert "Role" not in {o["kind"] for o in render({})}
    assert (
        one(render({}), "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"]
        is False
    )
    objects = render(EVERYTHING)
    role, binding = one(objects, "Role"), one(objects, "RoleBinding")
    assert role["rules"] == [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "models"
    (subject,) = binding["subjects"]
    account = one(objects, "ServiceAccount")["metadata"]["name"]
    assert subject == {"kind": "ServiceAccount", "name": account, "namespace": "serving"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_prometheus_gets_the_admin_key() -> None:
    objects = render(EVERYTHING)
    monitor, secret = one(objects, "ServiceMonitor"), one(objects, "Secret")
    (endpoint,) = monitor["spec"]["endpoints"]
    name = secret["metadata"]["name"]
    assert endpoint["authorization"]["credentials"] == {"name": name, "key": "key"}
    chosen = monitor["spec"]["selector"]["matchLabels"].items()
    matching = [
        o for o in objects if o["kind"] == "Service" and chosen <= o["metadata"]["labels"].items()
    ]
    assert [p["name"] for s in matching for p in s["spec"]["ports"]] == [endpoint["port"]]


def test_scaling() -> None:
    objects = render(CASES["many"])
    target = one(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = one(objects, "Deployment")
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "the autoscaler's number is not reset"
    assert "Secret" not in {o["kind"] for o in objects}


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"mode": "sometimes"},
        {"workerUrls": ["https://a:1"]},
        {"workerUrls": ["http://a:1,http://b:1"]},
        {"discovery": {"dns": ["no-port"]}},
        {"drainGrace": "30s"},
        {"service": {"port": 0}},
        {"autoscaling": {"minReplicas": 0}},
        {"image": {"repository": ""}},
        {"persistence": {"enabled": True}, "replicas": 2},
        {"persistence": {"enabled": True}, "autoscaling": {"enabled": True}},
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python")
    with pytest.raises(helm.HelmError):
        render(values)


def test_the_chart_is_well_formed() -> None:
    helm = pytest.importorskip("helm_python")
    found = helm.chart.lint(CHART, strict=True)
    bad = [m for m in found.get("messages", ()) if m.get("severity") not in ("INFO", 1)]
    assert not bad, found
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}
    version = re.search(r'^version = "(.+)"', (DEPLOY.parent / "pyproject.toml").read_text(), re.M)
    assert version
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version[1]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_kustomize_base(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kustomize"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    check_schemas(objects)
    deployment = one(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    check_pod(pod, capsys)
    made = one(objects, "ConfigMap")
    config = resolve({}, {}, made["data"]["lodestar.toml"], "lodestar.toml")
    assert config.discovery.kubernetes_selector
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == made["metadata"]["name"]
    (subject,) = one(objects, "RoleBinding")["subjects"]
    assert subject["namespace"] == deployment["metadata"]["namespace"]
    assert not {o["kind"] for o in objects} & {"ClusterRole", "ClusterRoleBinding"}


def test_the_image_runs_without_root_and_with_torch_for_the_cpu() -> None:
    """Not built here: there is no container engine. What can be read off the file is checked."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    steps = [line.split(None, 1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    stages = [i for i, (word, _) in enumerate(steps) if word == "FROM"]
    assert len(stages) == 2 and steps[0][1].endswith("AS build")
    last = steps[stages[1] :]
    words = [word for word, _ in last]
    assert words[-2:] == ["ENTRYPOINT", "CMD"] and words.index("USER") < words.index("ENTRYPOINT")
    user = next(rest for word, rest in last if word == "USER")
    assert user.isdigit() and int(user) == 10001, "a number, so that runAsNonRoot can be checked"
    final = " ".join(rest for _, rest in last)
    assert "apt-get" not in final and "gcc" not in final, "compilers stay in the first stage"
    assert "PYTHONDONTWRITEBYTECODE=1" in final, "the file system is read-only"
    pin = re.search(r"^torch==(\S+)", (DEPLOY.parent / "constraints.txt").read_text(), re.M)
    assert pin and f"torch=={pin[1]}" in text and "-c constraints.txt" in text
    assert not re.search(r":latest|ADD https?:", text)
