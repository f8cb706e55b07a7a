"""Errors that the user can fix. Any other exception is a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrlhfError(Exception):
    """Bad input: `message` names the value and says why, `hint` says what to do. Shown on one line, exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = " ".join(message.split()), hint  # values and other errors may hold line ends
        super().__init__(f"{self.message}; {hint}" if hint else self.message)


class CannotWrite(PrlhfError):
    """The system refuses to write. `first`: what the user can do besides writing elsewhere, if anything."""

    def __init__(self, message: str, first: str = "") -> None:
        self.first = first
        super().__init__(message, f"{first}, or write elsewhere" if first else "choose another place")


class OnAll(PrlhfError):
    """What all workers of a run raise together, and would raise again if they were restarted."""


class NotFinite(OnAll):
    """A loss, gradient, weight or reward that is not a finite number."""


class Interrupted(Exception):
    """Ctrl-C was pressed, and the finished work has been saved. The text says how to continue. Exit code 130."""


def unknown_user(user: str, run: object, known: Iterable[str]) -> PrlhfError:
    """The error that `run` does not know `user`, with the nearest of the users that it knows."""
    return PrlhfError(f"user '{user}' is unknown to {run}", nearest(user, known))


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return `did you mean 'tldr'?`, or the known names if none is similar to `name`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    more = f", … ({len(names)} in all)" if len(names) > 10 else ""
    return "known: " + ", ".join(names[:10]) + more


def one_line(error: BaseException) -> str:
    """Return the error's text on one line of at most 200 characters, for use inside a message.

    A pydantic error lists every fault, over several lines; only the first is returned: `base: field required`.
    """
    text = str(error)
    if callable(listed := getattr(error, "errors", None)):
        first = listed()[0]
        text = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]]))
    return " ".join(text.split())[:200]
