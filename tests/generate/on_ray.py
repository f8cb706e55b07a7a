"""What tests of workers share: one Ray for a module, and hooks that run in every worker before it does anything."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

LOADS, DEATHS = "PRLHF_TEST_LOADS", "PRLHF_TEST_DEATHS"  # files, in the workers' environment


def in_each_worker() -> None:
    """Counts the loads of a model, a line each in the file LOADS; and ends the process after its first rows as often
    as the file DEATHS has lines, of which each death takes one."""
    import prlhf.generate.models as models
    from prlhf.generate.author import Author

    load, write = models.load_policy, Author.write

    def counted(*args: Any) -> Any:
        note(Path(os.environ[LOADS]), f"{os.getpid()}\n")
        return load(*args)

    def dying(self: Author, jobs: Any) -> Any:
        for rows in write(self, jobs):
            yield rows
            deaths = Path(os.environ[DEATHS])
            if deaths.is_file() and (left := deaths.read_text()):
                deaths.write_text(left[1:])
                os.kill(os.getpid(), signal.SIGKILL)

    models.load_policy, Author.write = counted, dying  # type: ignore[assignment, method-assign]


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)
