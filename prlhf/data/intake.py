"""Reading raw rows under the malformed-row policy, and the account of every row that did not get through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

from prlhf.data.rows import Dropped, Malformed, Row
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.raw import Raw, RawRows

MALFORMED, REPEAT, EQUAL = "malformed", "repeat", "equal pair"
NOT_AN_ID = "fix the row, or leave such a column out with --column id=none"
EXAMPLES = 20  # malformed rows named one by one in the manifest
PER_ADVANCE = 256  # rows per step of the bar: drawing it costs more than reading a row

Convert = Callable[[Any, int], Row]  # (raw value, its number from 1) -> Row, or raises Malformed or Dropped


class Identified(Protocol):
    """What an intake reads: rows, and what rows are made of where a data set keeps that in files of its own."""

    @property
    def id(self) -> str:
        """The id, unique within a part."""


T = TypeVar("T", bound=Identified)


class Drops:
    """Rows read and dropped, per part of the data (`train`, `eval`, ...) and per filter, in the filters' order."""

    def __init__(self, *filters: str) -> None:
        self.filters = (MALFORMED, *filters)
        self.read: Counter[str] = Counter()
        self.examples: list[str] = []
        self._dropped: Counter[tuple[str, str]] = Counter()

    def drop(self, part: str, reason: str, count: int = 1) -> None:
        """Count `count` rows of `part` as dropped for `reason`, one of `filters`."""
        if reason not in self.filters:
            raise KeyError(reason)
        self._dropped[part, reason] += count

    def malformed(self, part: str, line: str) -> None:
        """Count a malformed row of `part`, and keep `line` as an example."""
        self.drop(part, MALFORMED)
        if len(self.examples) < EXAMPLES:
            self.examples.append(line)

    def by_reason(self) -> dict[str, int]:
        """Dropped rows of all parts, by reason."""
        return {reason: sum(self._dropped[part, reason] for part in self.read) for reason in self.filters}

    def report(self) -> dict[str, Any]:
        """The manifest's account: `read`, `dropped` by reason, and per filter the rows before and after it."""
        left = dict(self.read)
        filters = []
        for reason in self.filters:
            before = dict(left)
            left = {part: count - self._dropped[part, reason] for part, count in left.items()}
            filters.append({"filter": reason} | {p: {"before": before[p], "after": left[p]} for p in left})
        account = {"read": dict(self.read), "filters": filters, "dropped": self.by_reason()}
        return account | ({"malformed": self.examples} if self.examples else {})

    def in_words(self) -> str:
        """`3 read, 2 malformed, 1 repeat; the first: FILE:1: …`, for the message when nothing is left."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.by_reason().items() if count)
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        return f"{sum(self.read.values())} read" + (f", {why}" if why else "") + first


class Intake:
    """Reads the parts of one data set. Malformed rows are dropped and counted; `strict` then refuses the part."""

    def __init__(self, bad_rows: Literal["strict", "skip"], drops: Drops, progress: Progress) -> None:
        self.strict, self.drops, self.progress = bad_rows == "strict", drops, progress

    def read(
        self,
        part: str,
        source: RawRows,
        convert: Callable[[Any, int], T],
        what: str = "comparison",
        key: Callable[[T], Hashable] = lambda row: row.id,
    ) -> list[T]:
        """The well-formed rows of one part. Keys are unique within it: the same row again is dropped as a repeat.

        `what`: a row of this part in words, for messages. `key`: what makes it one of its own.
        """
        kept: dict[Hashable, T] = {}
        refused: list[tuple[str, Malformed]] = []
        self.drops.read[part] += 0
        for number, raw in enumerate(self._with_bar(part, source), start=1):
            self.drops.read[part] += 1
            try:
                row = self._convert(raw, number, convert)
                if kept.setdefault(key(row), row) is row:
                    continue
                if kept[key(row)] != row:
                    raise Malformed(f"id '{row.id}' was used above for another {what}", NOT_AN_ID)
                self.drops.drop(part, REPEAT)
            except Dropped as drop:
                self.drops.drop(part, str(drop))
            except Malformed as bad:
                refused.append((raw.location, bad))
                self.drops.malformed(part, f"{raw.location}: {bad}")
        if refused and self.strict:
            raise _refusal(refused, anything=bool(kept))
        return list(kept.values())

    def _convert(self, raw: Raw, number: int, convert: Callable[[Any, int], T]) -> T:
        if raw.problem:
            raise Malformed(raw.problem)
        return convert(raw.value, number)

    def _with_bar(self, part: str, source: RawRows) -> Iterator[Raw]:
        self.progress.start(f"reading {part}", source.total)
        pending = 0
        try:
            for raw in source.rows:
                pending += 1
                if pending == PER_ADVANCE:
                    self.progress.advance(pending)
                    pending = 0
                yield raw
            self.progress.advance(pending)
        finally:
            self.progress.finish()


def _refusal(refused: Sequence[tuple[str, Malformed]], anything: bool) -> PrlhfError:
    """The first malformed row, and how many there are. `anything`: whether dropping them would leave a row."""
    location, first = refused[0]
    more = f" (the first of {len(refused)} malformed rows)" if len(refused) > 1 else ""
    instead = ", or drop such rows with --skip-bad" if anything else ""
    return PrlhfError(f"{location}: {first}{more}", f"{first.hint}{instead}")


def check_left(rows: Sequence[object], drops: Drops, source: str) -> None:
    """Refuse to go on with nothing."""
    if not rows:
        raise PrlhfError(f"no comparison is left of {source}: {drops.in_words()}", "check the file and the filters")
