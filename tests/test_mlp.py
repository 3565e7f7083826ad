"""Weight blobs and the forward pass: parity with numpy and PyTorch; what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar_fast import features
from lodestar_fast.core.learned import SIMDS
from lodestar_fast.core.policies import POLICIES, Lodestar
from lodestar_fast.errors import BlobError
from tests.oracle import Array, Model, rows

SHAPES = [None, [], [1], [7], [24, 24], [32, 32], [128, 128, 128]]
each_simd = pytest.mark.parametrize("simd", SIMDS)


def load(model: Model) -> Lodestar:
    policy = Lodestar()
    assert policy.load(model.blob()) == model.version
    return policy


def predict(policy: Lodestar, x: Array, simd: str | None = None) -> tuple[Array, int]:
    seconds = np.empty(len(x), "<f4")
    return seconds, policy.predict(x, seconds, simd=simd)


@pytest.mark.parametrize("hidden", SHAPES, ids=str)
@pytest.mark.parametrize("n", [*range(1, 8), 16, 33])
@each_simd
def test_numpy_agrees(hidden: list[int] | None, n: int, simd: str) -> None:
    model = Model(hidden, seed=n)
    x = rows(n, seed=n)
    x[:, ::3] = x[0, ::3]  # columns of the request
    seconds, outside = predict(load(model), x, simd)
    assert outside == 0
    np.testing.assert_allclose(seconds, model.predict(x), rtol=1e-5)


@pytest.mark.parametrize("hidden", SHAPES, ids=str)
def test_variants_agree(hidden: list[int] | None) -> None:
    policy, x = load(Model(hidden, seed=3)), rows(50, seed=4)
    plain, _ = predict(policy, x, "portable")
    for simd in SIMDS:
        np.testing.assert_allclose(predict(policy, x, simd)[0], plain, rtol=1e-5)
    assert predict(policy, x)[0].tolist() == predict(policy, x, [*SIMDS][-1])[0].tolist()


def test_instructions_that_are_not_there_are_refused() -> None:
    policy, x = load(Model([8])), rows(3)
    before, _ = predict(policy, x)
    with pytest.raises(KeyError):
        predict(policy, x, "abacus")
    assert predict(policy, x)[0].tolist() == before.tolist()


def test_rows_far_apart_in_one_call_do_not_touch_each_other() -> None:
    """Units that are off in some rows of a block and on in others; equal rows among them."""
    policy = load(Model([128, 128, 128], seed=7))
    x = rows(40, seed=8) * np.linspace(-2, 2, 40, dtype="<f4")[:, None]
    x[5] = x[6] = x[7]
    together, _ = predict(policy, x)
    alone = np.concatenate([predict(policy, x[i : i + 1])[0] for i in range(40)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("hidden", [[24, 24], [128, 128, 128]], ids=str)
@each_simd
def test_pytorch_agrees(hidden: list[int], simd: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    model, x = Model(hidden, seed=5), rows(64, seed=6)
    net = torch.nn.Sequential()
    for i, (weight, bias) in enumerate(model.layers):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        net.append(layer)
        if i + 1 < len(model.layers):
            net.append(torch.nn.ReLU())
    with torch.no_grad():
        inputs = torch.tensor(x).clip(torch.tensor(model.clip_low), torch.tensor(model.clip_high))
        log_factor = net(inputs)[:, 0].clip(-model.bound, model.bound)
        base = (torch.tensor(x) @ torch.tensor(model.linear)).clip(min=1e-4)
        wanted = (base * torch.exp(log_factor)).numpy()
    got, _ = predict(load(model), x, simd)
    worst = float(np.max(np.abs(got - wanted) / np.abs(wanted)))
    with capsys.disabled():
        print(f" worst relative difference {worst:.1e}", end="")
    assert worst <= 1e-5


@each_simd
def test_inputs_are_clipped_and_the_output_is_bounded(simd: str) -> None:
    model = Model([8], seed=1)
    x = rows(40, seed=2) * 100
    got, _ = predict(load(model), x, simd)
    np.testing.assert_allclose(got, model.predict(x), rtol=1e-5)
    factor = got / (x @ model.linear)
    assert factor.max() <= 2.00001 and factor.min() >= 0.49999


@each_simd
def test_a_row_outside_the_range_gets_the_linear_part_alone(simd: str) -> None:
    model = Model([8], seed=1)
    model.range_low[:], model.range_high[:] = 0.0, 1.5
    x = rows(10, seed=2)
    x[3, 4] = 1.6
    x[7, 0] = -0.1
    got, outside = predict(load(model), x, simd)
    assert outside == 2
    np.testing.assert_allclose(got, model.predict(x), rtol=1e-5)
    assert got[3] == pytest.approx(float(x[3] @ model.linear), rel=1e-6)


def test_a_range_of_nothing_puts_all_rows_outside() -> None:
    model = Model([8], seed=1)
    model.range_low[:], model.range_high[:] = np.inf, -np.inf
    assert predict(load(model), rows(5))[1] == 5


@each_simd
def test_a_linear_prediction_is_never_below_its_floor(simd: str) -> None:
    model = Model(None)
    model.linear[:] = -1
    assert predict(load(model), rows(3), simd)[0].tolist() == pytest.approx([1e-4] * 3)


@each_simd
def test_what_is_no_number_is_the_worst_prediction_and_not_the_best(simd: str) -> None:
    model = Model(None)
    model.linear[:2] = 3e38, -3e38  # infinity less infinity
    got, _ = predict(load(model), np.full((3, features.WIDTH), 1000, "<f4"), simd)
    assert got.tolist() == [1e9] * 3


@each_simd
def test_a_correction_that_is_no_number_is_none(simd: str) -> None:
    model = Model([2])
    weight, _ = model.layers[1]
    model.layers[0][0][:], model.layers[0][1][:] = 3e38, 3e38
    weight[:] = [[3e38, -3e38]]  # infinity less infinity
    x = rows(4)
    got, _ = predict(load(model), x, simd)
    np.testing.assert_allclose(got, x @ model.linear, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": 1}, "not a weight blob"),
        ({"format": 1}, "another format"),
        ({"schema": 1}, "another table of features"),
        ({"width": features.WIDTH + 1}, "sizes"),
        ({"layers": 5}, "sizes"),
        ({"layers": 0}, "sizes|not finite"),  # what is left over is read as heads
        ({"layers": 1}, "sizes"),
    ],
)
def test_falsified_headers_are_refused(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(BlobError, match=reason):
        Lodestar().load(Model([8]).blob(**changes))


@pytest.mark.parametrize("dims", [[0], [129], [8, 0], [8, 129]], ids=str)
def test_layers_of_impossible_width_are_refused(dims: list[int]) -> None:
    model = Model([4] * len(dims))
    model.dims[1:-1] = dims
    with pytest.raises(BlobError, match="sizes"):
        Lodestar().load(model.blob())


def test_every_truncation_is_refused() -> None:
    blob = Model([3]).blob()
    policy = Lodestar()
    for end in range(len(blob)):
        with pytest.raises(BlobError):
            policy.load(blob[:end])
    with pytest.raises(BlobError, match="sizes"):
        policy.load(blob + b"\0")
    assert policy.version == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["bound", "linear", "clip_low", "clip_high", "weight", "bias"])
def test_numbers_that_are_not_finite_are_refused(part: str, bad: float) -> None:
    model = Model([3])
    if part == "bound":
        model.bound = bad
    elif part in ("weight", "bias"):
        model.layers[1][part == "bias"].flat[0] = bad
    else:
        getattr(model, part)[-1] = bad
    with pytest.raises(BlobError, match="not finite"):
        Lodestar().load(model.blob())


@pytest.mark.parametrize("part", ["range_low", "range_high"])
def test_ranges_may_be_infinite_and_must_be_numbers(part: str) -> None:
    model = Model([3])
    getattr(model, part)[0] = np.nan
    with pytest.raises(BlobError, match="not finite"):
        Lodestar().load(model.blob())


def test_crossed_clips_and_a_negative_bound_are_refused() -> None:
    model = Model([3])
    model.clip_low[2] = 5
    with pytest.raises(BlobError, match="crossed"):
        Lodestar().load(model.blob())
    model = Model([3])
    model.bound = -1
    with pytest.raises(BlobError, match="crossed"):
        Lodestar().load(model.blob())


def test_a_refused_blob_leaves_the_weights_in_use() -> None:
    first, second = Model([8], seed=1, version=1), Model(None, seed=2, version=2)
    policy, x = load(first), rows(5)
    before, _ = predict(policy, x)
    for _ in range(3):
        with pytest.raises(BlobError):
            policy.load(second.blob()[:-1])
        assert policy.version == 1
        assert predict(policy, x)[0].tolist() == before.tolist()
    for model in (second, first, second):
        assert policy.load(model.blob()) == policy.version == model.version
        np.testing.assert_allclose(predict(policy, x)[0], model.predict(x), rtol=1e-5)


def test_heuristics_ignore_weights() -> None:
    for name, policy in POLICIES.items():
        if name != "lodestar":
            assert policy().load(Model(None).blob()) == 0


@pytest.mark.parametrize("blob", ["text", None, 3])
def test_a_blob_is_bytes(blob: object) -> None:
    with pytest.raises(TypeError):
        Lodestar().load(blob)  # type: ignore[arg-type]


def test_predict_refuses_sizes_that_do_not_fit() -> None:
    policy = load(Model(None))
    for x, n in ((rows(3), 2), (rows(3), 4), (rows(2)[:, :-1].copy(), 2)):
        with pytest.raises(ValueError, match="numbers for"):
            policy.predict(x, np.empty(n, "<f4"))
    with pytest.raises(ValueError, match="no weights"):
        Lodestar().predict(rows(1), np.empty(1, "<f4"))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_mutated_blobs_are_refused_or_give_numbers(data: st.DataObject) -> None:
    blob = bytearray(Model(data.draw(st.sampled_from(SHAPES[:5]))).blob())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    policy = Lodestar()
    try:
        policy.load(blob)
    except BlobError:
        assert policy.version == 0
    else:
        assert not np.isnan(predict(policy, rows(9))[0]).any()
