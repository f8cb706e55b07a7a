"""What a command imports on its way to the first step or token: nothing that it does not use there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LATER = ("trl", "ray", "optuna", "matplotlib", "openai", "tensorboardX", "torchvision", "sklearn")
# Trainer imports these itself, `datasets` with pandas; loading a model imports peft, after the run folder was checked
OF_TRAINING = ("transformers.trainer", "transformers.modeling_utils", "accelerate", "peft", "datasets", "pandas")
OF_MODELS = ("torch", "transformers", "safetensors", "tokenizers")


def imported(code: str) -> set[str]:
    """The modules in a new process after `code`."""
    show = "import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "unused"),
    [
        ("import prlhf.train.run", LATER),
        ("import prlhf.generate.run", (*LATER, *OF_TRAINING)),
        ("import prlhf.data", (*LATER, *OF_TRAINING, *OF_MODELS)),
    ],
)
def test_nothing_unused_is_imported(code: str, unused: tuple[str, ...]) -> None:
    assert imported(code).isdisjoint(unused)


def test_reading_prepared_data_imports_neither_pandas_nor_the_reader_of_many_files(prepared: Path) -> None:
    """Half a second that pyarrow.parquet.read_table takes at its first call."""
    there = imported(f"from pathlib import Path; from prlhf.records import *; read_prepared(Path({str(prepared)!r}))")
    assert "pyarrow.parquet" in there
    assert there.isdisjoint(("pandas", "pyarrow.dataset"))
