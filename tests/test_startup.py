"""The modules that a command imports before the first step or token, and the clock of benchmarks/startup.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import startup  # noqa: E402

LATER = ("trl", "ray", "optuna", "matplotlib", "openai", "tensorboardX", "torchvision", "sklearn")
# Trainer imports these itself, `datasets` with pandas; loading a model imports peft, after the run folder was checked
OF_TRAINING = ("transformers.trainer", "transformers.modeling_utils", "accelerate", "peft", "datasets", "pandas")
OF_MODELS = ("torch", "transformers", "safetensors", "tokenizers")


def imported(code: str) -> set[str]:
    """Return the modules of a new process after it ran `code`."""
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
    """The first call of pyarrow.parquet.read_table would import both: a quarter of a second."""
    there = imported(f"from pathlib import Path; from prlhf.dataset import *; read_prepared(Path({str(prepared)!r}))")
    assert "pyarrow.parquet" in there
    assert there.isdisjoint(("pandas", "pyarrow.dataset"))


def test_the_clock_stops_at_the_first_line_or_at_the_end(tmp_path: Path) -> None:
    write = '-c \'import time; f = open("new", "w"); print(1, file=f, flush=True); time.sleep(60)\''
    wall, cpu = startup.time_one(write, ROOT, tmp_path, "new*")
    assert 0 < cpu < wall < 30
    assert startup.time_one("-c 'import time; time.sleep(0.2)'", ROOT, tmp_path)[0] > 0.2


@pytest.mark.parametrize("until", ["", "never"])
def test_a_command_that_fails_is_shown(tmp_path: Path, until: str) -> None:
    with pytest.raises(SystemExit, match="exit code 1\nno such thing"):
        startup.time_one("-c 'raise SystemExit(\"no such thing\")'", ROOT, tmp_path, until)


def test_the_table_has_medians() -> None:
    runs = [(3.0, 1.0), (9.0, 2.0), (4.0, 9.0)]
    assert startup.table({"help": {"/a/b": startup.summary(runs)}}).split("\n")[-1] == "| help | 4.00 | 2.00 |"
