"""Rows that do not fit into the model's context: left out and counted, or one error for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from prlhf.errors import PrlhfError

R = TypeVar("R")
E = TypeVar("E")
NAMED = 3  # how many rows a message names


class TooLong(PrlhfError):
    """A row does not fit. `name`: the row; `over`: the tokens it has too many; `advice`: what to do about the cause."""

    def __init__(self, name: str, why: str, advice: str, over: int) -> None:
        self.name, self.why, self.advice, self.over = name, why, advice, over
        super().__init__(why, advice)


class Fitting:
    """Encodes rows part by part; rows that do not fit are an error, or with `skip` left out and counted."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.rows: dict[str, int] = {}  # number of rows, by part
        self.misfits: dict[str, list[TooLong]] = {}

    def part(self, part: str, rows: Iterable[R], encode: Callable[[R], E]) -> list[tuple[R, E]]:
        """The rows of one part that fit, each with its encoding."""
        found: list[tuple[R, E]] = []
        misfits = self.misfits.setdefault(part, [])
        for row in rows:
            try:
                found.append((row, encode(row)))
            except TooLong as error:
                misfits.append(error)
        self.rows[part] = len(found) + len(misfits)
        return found

    @property
    def skipped(self) -> dict[str, int]:
        """How many rows of each part were left out."""
        return {part: len(misfits) for part, misfits in self.misfits.items()}

    def check(self, advice: str = "", option: str = "--skip-long") -> None:
        """Raise PrlhfError with all rows that do not fit, unless they are skipped and something is left of each part.

        `advice`: what to do, in place of the advice of the rows; `option`: the flag that leaves such rows out, "" if
        the command does not have one.
        """
        errors = [error for misfits in self.misfits.values() for error in misfits]
        if not errors:
            return
        if self.skip:
            empty = [part for part, misfits in self.misfits.items() if misfits and len(misfits) == self.rows[part]]
            if not empty:
                return
            raise PrlhfError(f"nothing is left of the {empty[0]}: {self.summary()}", advice or _advice(errors))
        or_skip = f", or leave such rows out with {option}" if option else ""
        raise PrlhfError(self.summary(), (advice or _advice(errors)) + or_skip)

    def summary(self) -> str:
        """How many rows of which parts do not fit, by how many tokens, three names, and the reason of the first."""
        errors = [error for misfits in self.misfits.values() for error in misfits]
        if len(errors) == 1 and sum(self.rows.values()) == 1:
            return errors[0].why
        counts = [f"{len(m):,} of {self.rows[part]:,} {part}" for part, m in self.misfits.items() if m]
        least, most = min(e.over for e in errors), max(e.over for e in errors)
        by = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        names = ", ".join(f"'{error.name}'" for error in errors[:NAMED]) + (", …" if len(errors) > NAMED else "")
        return f"{' and '.join(counts)} do not fit, by {by} tokens ({names}): {errors[0].why}"


def _advice(errors: Sequence[TooLong]) -> str:
    """What to do about each cause that occurs, once per cause."""
    return "; ".join(dict.fromkeys(error.advice for error in errors))
