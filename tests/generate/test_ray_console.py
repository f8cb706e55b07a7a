"""What is kept off the terminal while Ray writes: its own log lines, and nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from prlhf.generate.on_ray import console_handlers

CORE = "[2026-05-01 10:00:00,123 E 12 34] (core_worker) actor_manager.cc:1: an actor died"
SCRIPT = f"""
import os, sys
from prlhf.generate.on_ray import without_core_lines
with without_core_lines():
    os.write(2, b"{CORE}\\n")
    print("python", file=sys.stderr)
    os.write(2, b"CUDA error: device-side assert\\n[not a log line]\\nno newline")
os.write(2, b"\\n{CORE}\\n")
"""


def test_only_lines_of_the_core_are_kept_off() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    shown = ["python", "CUDA error: device-side assert", "[not a log line]", "no newline", CORE]
    assert sorted(done.stderr.splitlines()) == sorted(shown)


def test_where_descriptors_cannot_be_replaced_nothing_is_kept_off() -> None:
    """Here the process has no descriptor 2 at all."""
    code = "from prlhf.generate.on_ray import without_core_lines\nimport os\nos.close(2)\n"
    code += "with without_core_lines(): print('on', flush=True)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"


def test_handlers_of_the_terminal_are_found_whatever_their_class_is_called(tmp_path: Path) -> None:
    class Renamed(logging.StreamHandler):
        pass

    logger = logging.getLogger("of a library")
    own, file = Renamed(), logging.FileHandler(tmp_path / "log")
    logger.handlers = [own, file, logging.NullHandler()]
    assert console_handlers("of a library") == [own]
    file.close()


def test_ray_data_has_such_a_handler() -> None:
    """In a process of its own: Ray sets up its logging when it is imported."""
    code = (
        "import ray.data; from prlhf.generate.on_ray import console_handlers\nprint(len(console_handlers('ray.data')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
