"""What is said of a base that cannot be loaded: from a hub (one on loopback), and from this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_hub import fake_hub
from safetensors.torch import load_file, save_file

from prlhf.errors import PrlhfError
from prlhf.model.base import load_base, load_skeleton
from prlhf.model.base_errors import why_not
from prlhf.source import hub

LOAD = """
import json, sys, torch
from prlhf.errors import PrlhfError
from prlhf.model.base import load_base
from prlhf.model.base import load_skeleton
for name in json.loads(sys.argv[1]):
    said = []
    for load in (load_base, lambda name: load_skeleton(name, torch.float32)):
        try:
            load(name)
            said.append("loaded")
        except PrlhfError as error:
            said.append(str(error))
    print(json.dumps([name, *said]))
"""


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def _config(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _no_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: w for k, w in weights.items() if "down_proj" not in k}, folder / "model.safetensors", {"format": "pt"}
    )


DAMAGE: dict[str, Callable[[Path], object]] = {
    "org/good": lambda folder: None,
    "org/bin-only": _rename("model.safetensors", "pytorch_model.bin"),
    "org/gguf-only": _rename("model.safetensors", "m-q4.gguf"),
    "org/new-type": _config(model_type="tarot"),
    "org/own-code": _config(model_type="tarot", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
    "org/t5": _config(model_type="t5"),
    "org/no-config": _rename("config.json", "other.json"),
    "org/no-tokenizer": _rename("tokenizer.json", "other.json"),
    "org/bad-value": _config(hidden_size="wide"),
}
NO_LOGIN = "that may be read without a login; check the spelling; if it is private, log in with `hf auth login`"
SAID = {
    "org/good": ["loaded"],
    "org/gated": [
        "model org/gated needs access; accept its license at https://huggingface.co/org/gated and log in with"
    ],
    "org/gated-no-login": ["model org/gated-no-login needs access", "`hf auth login`"],
    "org/missing": ["the hub has no model 'org/missing'", NO_LOGIN],
    "org/private": ["the hub has no model 'org/private'", NO_LOGIN],
    "org/disabled": ["the hub has disabled model org/disabled"],
    "org/busy": ["too many requests (status 429)"],
    "org/broken": ["the hub failed to give model org/broken (status 500)", "try again later"],
    "org/forbidden": ["the hub refuses your login for model org/forbidden (status 403)"],
    "org/bin-only": ["has its weights as pytorch_model.bin and not as safetensors", "convert it at https://"],
    "org/gguf-only": ["GGUF files only, such as m-q4.gguf", "--model FILE.gguf"],
    "org/new-type": ["of the type 'tarot', which transformers", "pip install --upgrade transformers"],
    "org/own-code": ["has its own code", "--trust-remote-code"],
    "org/t5": ["org/t5 is not a causal language model"],
    "org/no-config": ["has no config.json that says its model_type"],
    "org/no-tokenizer": ["has no tokenizer.json", "pip install sentencepiece tiktoken"],
    "org/bad-value": ["cannot load model org/bad-value", "hidden_size"],
    "no model": ["'no model' is neither a local path nor a valid name on the hub", "OWNER/NAME"],
}


def answers(names: list[str], **variables: str) -> dict[str, list[str]]:
    """What loading each of `names` says, whole and as a skeleton, in a process that may ask the hub."""
    quiet = {"HF_HUB_DISABLE_XET": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | quiet | variables
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(names)], capture_output=True, text=True, check=True, env=environment
    )
    return {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, list[str]]:
    scratch = tmp_path_factory.mktemp("hub")
    folders = {name: Path(shutil.copytree(tiny_base, scratch / name)) for name in DAMAGE}
    for name, damage in DAMAGE.items():
        damage(folders[name])
    with fake_hub(folders) as address:
        return answers(list(SAID), HF_ENDPOINT=address, HF_HOME=str(scratch / "home"), HF_HUB_OFFLINE="0")


@pytest.mark.parametrize("name", SAID)
def test_a_hub_model_that_cannot_be_loaded(answered: dict[str, list[str]], name: str) -> None:
    for said in answered[name]:
        assert [part for part in SAID[name] if part not in said] == [], said
        assert "\n" not in said


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as free:  # bound and not listening: refused at once
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        found = answers(["org/good"], HF_ENDPOINT=address, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    for said in found["org/good"]:
        assert said.startswith("cannot reach the hub for model org/good (")
        assert said.endswith(
            "; give a local folder or a .gguf file with --model, or set HF_HUB_OFFLINE=1 to use a cached copy"
        )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "the disk is full: model org/big does not fit into "),
        (OSError(122, "Disk quota exceeded"), "the disk is full: model org/big"),
        (PermissionError(13, "Permission denied"), "no permission; set HF_HOME to a folder of your own"),
        (ImportError("This modeling file requires: einops. Run `pip install einops`"), "pip install einops"),
        (ConnectionError("reset by peer"), "cannot reach the hub for model org/big (reset by peer)"),
    ],
)
def test_what_happens_while_downloading(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    wrapped = OSError("something of transformers'")
    wrapped.__cause__ = error
    assert said in "; ".join(why_not("org/big", wrapped if isinstance(error, OSError) else error))


def test_only_the_hub_s_errors_are_the_hub_s() -> None:
    assert hub.explain_error("model", "org/good", ValueError("no such thing"), "do without") is None


# ---- on this machine ----


def test_a_model_with_weights_missing(tiny_base: Path, tmp_path: Path) -> None:
    """transformers would make them up and go on."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    _no_head(folder)
    with pytest.raises(PrlhfError, match=r"lacks 2 weights of a causal language model: model.layers.0.mlp.down_proj"):
        load_base(str(folder))


@pytest.mark.parametrize(
    "load", [load_base, lambda name: load_skeleton(name, torch.float32)], ids=["whole", "skeleton"]
)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_rename("model.safetensors", "pytorch_model.bin"), "weights as pytorch_model.bin and not as safetensors"),
        (_rename("config.json", "adapter_config.json"), "is a PEFT adapter, not a model; merge it into its base"),
        (_rename("config.json", "config.txt"), "is not a model: it has no config.json"),
    ],
    ids=["bin", "adapter", "no-config"],
)
def test_a_folder_that_is_not_a_model(
    tiny_base: Path, tmp_path: Path, load: Callable[[str], object], damage: Callable[[Path], object], said: str
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    damage(folder)
    with pytest.raises(PrlhfError, match=said):
        load(str(folder))


def test_a_file_of_a_model(tiny_base: Path) -> None:
    with pytest.raises(PrlhfError, match=f"is a file, not the folder of a model; give {tiny_base}"):
        load_base(str(tiny_base / "model.safetensors"))


def test_a_folder_in_the_home(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_base, tmp_path / "base")
    assert load_base("~/base").context == 128
    with pytest.raises(PrlhfError, match=r"no model at ~/bsae; there is no folder .*bsae, did you mean 'base'\?"):
        load_base("~/bsae")


def test_what_may_be_a_path_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/lama` is an id like any other, but the folder beside it is what was meant."""
    (tmp_path / "models/llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PrlhfError, match=r"model models/lama is not in the cache.* no folder models/lama, did you mean 'llama'"
    ):
        load_base("models/lama")


def test_gguf_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrlhfError, match=r"needs the package gguf; pip install 'prlhf\[gguf\]'"):
        load_base(str(tmp_path / "a.gguf"))
