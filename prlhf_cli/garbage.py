"""Fewer searches of Python's garbage collector through imported modules.

torch and transformers create half a million objects that live until the process ends. Searching all of them again and
again took a fifth of the CPU time to the first training step and to the first token, and one more second at the end.
"""

from __future__ import annotations

import atexit
import gc

FULL = 1_000  # searches of the middle generation per full search; Python's default is 10


def seldom() -> None:
    """Make full searches rare, and skip those at the end of the process.

    Young objects are searched as often as before, so the garbage of a training step is freed as soon as before.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL)
    atexit.unregister(gc.freeze)  # if one process runs many commands
    atexit.register(gc.freeze)


def spare_imports() -> None:
    """Exclude all present objects from later searches.

    Only once per process: the objects of its first command are garbage for the second.
    """
    if not gc.get_freeze_count():
        gc.freeze()
