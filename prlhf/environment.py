"""The machine and the installation, for bug reports (`prlhf env`).

No secrets are shown: for a variable that may hold one, only whether it is set.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from prlhf.files import cache_folder
from prlhf.results import CacheFolder, Device, Environment, System

PACKAGES = (
    "prlhf", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "ray",
    "optuna", "openai", "numpy", "pyarrow", "pydantic", "typer", "rich", "matplotlib", "gguf", "fastapi",
    "tensorboard", "wandb",
)  # fmt: skip
VARIABLES = (
    "PRLHF_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "OPENAI_BASE_URL", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "RAY_ADDRESS",
)  # fmt: skip
SECRETS = (
    "HF_TOKEN",
    "OPENAI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "WANDB_API_KEY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


def environment() -> Environment:
    """Return versions, devices, caches and variables. Sizes are in GiB."""
    return Environment(
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        system=System(
            platform=platform.platform(),
            python=sys.executable,
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            memory_gib=_memory(),
        ),
        devices=_devices(),
        folders={
            "prlhf": _folder(cache_folder()),
            "hub": _folder(Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))),
        },
        variables={name: _without_password(os.environ[name]) for name in VARIABLES if name in os.environ}
        | {name: "set" for name in SECRETS if os.environ.get(name) or os.environ.get(name.lower())},
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name if the system gives it, else its architecture."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _devices() -> list[Device]:
    import torch  # takes seconds

    return [
        Device(name=torch.cuda.get_device_name(number), memory_gib=round(_bytes_of(number) / 2**30, 1))
        for number in range(torch.cuda.device_count())
    ]


def _bytes_of(number: int) -> int:
    import torch

    return int(torch.cuda.get_device_properties(number).total_memory)


def _folder(path: Path) -> CacheFolder:
    there = next(one for one in (path, *path.parents) if one.exists())
    return CacheFolder(
        path=str(path),
        exists=path.is_dir(),
        writable=os.access(there, os.W_OK),
        free_gib=round(shutil.disk_usage(there).free / 2**30, 1),
    )


def _without_password(value: str) -> str:
    """The address without user and password."""
    return re.sub(r"//[^/@]*@", "//", value)
