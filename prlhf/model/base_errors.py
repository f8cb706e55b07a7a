"""Why a base model cannot be loaded, in one line: errors of transformers and the hub, by their real cause."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.source import hub

INSTEAD = "give a local folder or a .gguf file with --model"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
CONVERT = "convert it at https://huggingface.co/spaces/safetensors/convert, or load it and save it with save_pretrained"


@contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Turn what transformers raises for a base that it cannot load into a PrlhfError."""
    try:
        yield
    except (PrlhfError, MemoryError):
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and a model's code raise many types
        raise PrlhfError(*why_not(name, error)) from error


@contextmanager
def gguf_failures_named(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged GGUF file raises into a PrlhfError."""
    try:
        yield
    except Exception as error:
        raise PrlhfError(
            f"cannot read {path} as GGUF: {one_line(error)}", "the file may be damaged: download it again"
        ) from error


def check_gguf(path: Path) -> None:
    """Refuse a file that is not GGUF or cannot be read without another package, before anything is loaded."""
    if not path.is_file():
        raise PrlhfError(f"no GGUF file at {path}", "check the path")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise PrlhfError(
                f"cannot read {path} as GGUF: it does not begin like one", "the file may be damaged: download it again"
            )
    if importlib.util.find_spec("gguf") is None:
        raise PrlhfError(f"reading {path} needs the package gguf", "pip install 'prlhf[gguf]'")


def check_folder(name: str, path: Path) -> None:
    """Refuse a path that exists and is not the folder of a model with its weights as safetensors."""
    if path.is_file():
        raise PrlhfError(f"{name} is a file, not the folder of a model", f"give {path.parent}")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            base = _adapter_base(path / "adapter_config.json")
            raise PrlhfError(
                f"{name} is a PEFT adapter, not a model", f"merge it into its base{base} and give the result"
            )
        inside = f"{path / 'model'}" if (path / "model" / "config.json").is_file() else "a folder saved by transformers"
        raise PrlhfError(f"{name} is not a model: it has no config.json", f"give {inside}")


def _adapter_base(path: Path) -> str:
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return f" {base}" if base else ""


def no_folder(path: Path) -> str:
    """The end of a message for a name that may be meant as a path: there is no such folder; "" if it cannot be one."""
    if path.parent == Path() or not path.parent.is_dir():
        return ""
    return f"; there is no folder {path}, {nearest(path.name, (p.name for p in path.parent.iterdir()))}"


def check_safetensors(name: str, files: set[str]) -> None:
    """Refuse a model that has weights, but not as safetensors; the loader refuses a model without any."""
    if any(file.endswith((".safetensors", INDEX)) for file in files):
        return
    others = sorted(f for f in files if f.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")))
    if others and others[0].endswith(".gguf"):
        raise PrlhfError(
            f"model {name} holds GGUF files only, such as {others[0]}",
            "give a file that you have, with --model FILE.gguf",
        )
    if others:
        raise PrlhfError(f"model {name} has its weights as {others[0]} and not as safetensors", CONVERT)


def check_hub_weights(name: str) -> None:
    """Raise PrlhfError if the hub does not have the weights of `name` as safetensors."""
    from huggingface_hub import file_exists, list_repo_files

    with failures_named(name):
        if not any(file_exists(name, file) for file in (WHOLE, INDEX)):
            check_safetensors(name, set(list_repo_files(name)))


def check_complete(name: str, missing: set[str]) -> None:
    """Refuse a model whose weights `missing` were initialized at random by transformers."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise PrlhfError(
            f"model {name} lacks {len(missing)} weights of a causal language model: {shown}",
            "download it again, or choose a model that has them",
        )


def why_not(name: str, error: Exception) -> tuple[str, str]:
    """A loading error as (message, hint). transformers raises the same types for everything, so its words decide."""
    text = " ".join(str(error).split())
    path = Path(name).expanduser()
    if "trust_remote_code" in text:
        return f"model {name} has its own code", "read it, then allow it with --trust-remote-code"
    if found := re.search(r"model type `?(\S+?)`? but Transformers does not recognize", text):
        from transformers import __version__ as version

        return (
            f"model {name} is of the type '{found[1]}', which transformers {version} does not know",
            "pip install --upgrade transformers, or choose another model",
        )
    if "Should have a `model_type` key" in text:
        return f"model {name} has no config.json that says its model_type", "is it a model for transformers?"
    if "Couldn't instantiate the backend tokenizer" in text:
        return (
            f"model {name} has no tokenizer.json, nor another tokenizer that can be read here",
            "add its tokenizer files; those of sentencepiece or tiktoken need: pip install sentencepiece tiktoken",
        )
    if "Unrecognized configuration class" in text:
        return (
            f"model {name} is not a causal language model",
            "choose one that transformers' AutoModelForCausalLM loads",
        )
    if isinstance(error, ImportError) and (found := re.search(r"pip install ([\w\-\[\] ,.'\"]*[\w\]'\"])", text)):
        return f"model {name} needs a package that is not installed: {found[1]}", f"pip install {found[1]}"
    if not path.exists():
        if "file named" in text or "EntryNotFound" in type(error).__name__:
            return f"model {name} lacks a file: {text[:200]}", "is it a model for transformers? choose another"
        if found_out := hub.explain_error("model", name, error, INSTEAD):
            return found_out[0] + no_folder(path), found_out[1]
    if isinstance(error, SafetensorError):
        return f"the weights of {name} are damaged: {text[:200]}", "download them again"
    return f"cannot load model {name}: {text[:300] or type(error).__name__}", "check its files, or choose another model"
