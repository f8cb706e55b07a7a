"""Fixtures of all tests: no hub, a terminal of fixed width, the raw samples if they are available, and a tiny random
base, prepared data and a trained run, each made once. Slow imports stay inside the fixtures.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` and `transformers` are first imported
os.environ["COLUMNS"] = "200"  # otherwise rich wraps at 80, inside the text that a test looks for
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported: tiny models are slower on many threads

import pytest
from material import write_base, write_data

# Tests that a shell runs in the background ignore Ctrl-C, and so would their child processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

CACHE = tempfile.TemporaryDirectory(prefix="prlhf-tests-")  # removed at exit
os.environ["PRLHF_CACHE"] = CACHE.name  # no test reads or writes the user's own
os.environ["TRACKIO_DIR"] = f"{CACHE.name}/trackio"  # read when trackio is first imported

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The raw-format samples beside the repository; their license does not allow copies in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no raw samples at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of width 32 on disk; its weights are large enough that its outputs are not uniform."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def make_prepared() -> Callable[[Path], Path]:
    """Write the data set of the fixture `prepared` to a folder, for tests that change it."""
    return write_data


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seen users: ann has a text, and cat prefers the shorter response. zoe is unseen and has a text."""
    return write_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def make_config(tiny_base: Path, prepared: Path) -> MakeConfig:
    """make_config(out, alpha=0.3, ...): a small CPU run without dropout; settings that do not apply are dropped."""
    from prlhf.config import SAVED, TrainConfig
    from prlhf.config.keys import unused

    def make(out: Path, **changes: Any) -> TrainConfig:
        values = {
            "dataset": str(prepared), "out": out, "model": str(tiny_base), "device": "cpu", "precision": "fp32",
            "nll": 0.0, "user_tokens": 2, "k": 2, "lora_r": 2, "lora_dropout": 0.0, "lr": 1e-2, "user_lr": 5e-2,
            "warmup_steps": 0, "batch_size": 2, "max_steps": 6, "save_every": 2, "seed": 3,
        }  # fmt: skip
        config = TrainConfig.model_validate(values | changes, context=SAVED)
        needless = unused(TrainConfig.declared, config, values).keys() - changes.keys()
        return TrainConfig.model_validate({key: v for key, v in (values | changes).items() if key not in needless})

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A finished run with individual users. Tests may read and copy it, but not change it."""
    from prlhf.train.run import train

    folder = tmp_path_factory.mktemp("runs") / "individual"
    train(make_config(folder))
    return folder
