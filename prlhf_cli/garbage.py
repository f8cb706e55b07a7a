"""Python's search for garbage, kept from what was imported.

torch and transformers are half a million objects that live to the end of the process. To look through them all, over
and over, was a fifth of the CPU time to the first training step and to the first token, and a second more at the end.
"""

from __future__ import annotations

import atexit
import gc

FULL = 1_000  # searches of the middle generation for each of everything; Python's own is 10


def seldom() -> None:
    """Make full searches rare and leave out those at the end of the process.

    Young objects are looked through as ever, so that what a training step leaves behind goes as soon as before.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL)
    atexit.unregister(gc.freeze)  # where one process runs many commands
    atexit.register(gc.freeze)


def spare_imports() -> None:
    """Leave all there is now out of every later search, of which Trainer makes one before its first step.

    Once in a process: what its first command leaves behind is garbage to the second.
    """
    if not gc.get_freeze_count():
        gc.freeze()
