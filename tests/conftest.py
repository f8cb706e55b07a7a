"""What every test needs: no hub, a terminal of known width, and the raw samples where they are mounted."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` and `transformers` are first imported
os.environ["COLUMNS"] = "200"  # rich wraps at 80 otherwise, in the middle of what a test looks for

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The raw-format samples beside the repository; their licence keeps them out of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no raw samples at {SHARED_DATA}")
    return SHARED_DATA
