"""Comparisons between a raw file and the prepared data set.

A value that is wrong raises `Malformed`. `RowReader` adds the location of the row, and either refuses the data or drops
the row; `DropCounts` counts every dropped row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from prlhf.dataset import Text
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.raw import Raw, RawRows
from prlhf.source.values import Malformed


@dataclass(frozen=True)
class Row:
    """A well-formed comparison by one user, without a user index."""

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    user_id: str
    user_text: str = ""


@dataclass(frozen=True)
class LoadedData:
    """The result of reading a data set. `order`: the training users in the order of their indices."""

    train: list[Row]
    eval: list[Row]
    order: list[str]
    source: str
    options: dict[str, Any]  # the settings that were used
    counts: dict[str, Any]  # `DropCounts.report()`: rows read and dropped
    notes: dict[str, Any] = field(default_factory=dict)  # further keys of the manifest
    warnings: list[str] = field(default_factory=list)
    preferences: dict[str, str] = field(default_factory=dict)  # user id -> true preference in words, if known
    prompts: list[Text] = field(default_factory=list)  # the data set's own prompts to generate from
    judging: list[dict[str, Any]] = field(default_factory=list)  # (prompt, user) pairs to judge, with material
    choices: list[Row] = field(default_factory=list)  # of unseen users, to learn them from; not in `eval`


class Dropped(Exception):
    """A well-formed row that a filter drops; the text is the name of the filter."""


MALFORMED, REPEAT, EQUAL = "malformed", "repeat", "equal pair"
NOT_AN_ID = "fix the row, or ignore the column with --column id=none"
EXAMPLES = 20  # malformed rows that the manifest lists
PER_ADVANCE = 256  # rows per step of the bar, because drawing it takes longer than reading a row

Convert = Callable[[Any, int], Row]  # (raw value, its number from 1) -> Row; raises Malformed or Dropped


class Identified(Protocol):
    """An item of a file: a row, or a part of rows if a data set keeps that in a file of its own."""

    @property
    def id(self) -> str:
        """The id, unique within a part of the data."""


T = TypeVar("T", bound=Identified)


class DropCounts:
    """Numbers of rows read and dropped, per part of the data (`train`, `eval`, …) and per filter, in their order."""

    def __init__(self, *filters: str) -> None:
        self.filters = (MALFORMED, *filters)
        self.read: Counter[str] = Counter()
        self.examples: list[str] = []
        self._dropped: Counter[tuple[str, str]] = Counter()

    def drop(self, part: str, reason: str, count: int = 1) -> None:
        """Count `count` rows of `part` as dropped for `reason`.

        Raises:
            KeyError: `reason` is not one of `filters`.
        """
        if reason not in self.filters:
            raise KeyError(reason)
        self._dropped[part, reason] += count

    def malformed(self, part: str, line: str) -> None:
        """Count a malformed row of `part`, and keep `line` as an example."""
        self.drop(part, MALFORMED)
        if len(self.examples) < EXAMPLES:
            self.examples.append(line)

    def by_reason(self) -> dict[str, int]:
        """Return the number of dropped rows of all parts, by reason."""
        return {reason: sum(self._dropped[part, reason] for part in self.read) for reason in self.filters}

    def report(self) -> dict[str, Any]:
        """Return the numbers for the manifest: `read`, `dropped`, and the rows before and after each filter."""
        left = dict(self.read)
        filters = []
        for reason in self.filters:
            before = dict(left)
            left = {part: count - self._dropped[part, reason] for part, count in left.items()}
            filters.append({"filter": reason} | {p: {"before": before[p], "after": left[p]} for p in left})
        account = {"read": dict(self.read), "filters": filters, "dropped": self.by_reason()}
        return account | ({"malformed": self.examples} if self.examples else {})

    def in_words(self) -> str:
        """Return `3 read, 2 malformed, 1 repeat; the first: FILE:1: …`, for the message that no row is left."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.by_reason().items() if count)
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        return f"{sum(self.read.values())} read" + (f", {why}" if why else "") + first


class RowReader:
    """Reads the parts of one data set. Malformed rows are counted; they are then refused (`strict`) or dropped."""

    def __init__(self, bad_rows: Literal["strict", "skip"], drops: DropCounts, progress: Progress) -> None:
        self.strict, self.drops, self.progress = bad_rows == "strict", drops, progress

    def read(
        self,
        part: str,
        source: RawRows,
        convert: Callable[[Any, int], T],
        what: str = "comparison",
        key: Callable[[T], Hashable] = lambda row: row.id,
    ) -> list[T]:
        """Read the well-formed rows of one part.

        Args:
            part: the name of the part, such as `train`.
            source: the raw rows.
            convert: turns a raw value and its number (from 1) into a row, or raises Malformed or Dropped.
            what: a row of this part in words, for messages.
            key: identifies a row within the part. An equal row with the same key is dropped as a repeat.

        Raises:
            PrlhfError: a row is malformed and `bad_rows` is `strict`, or a file cannot be read.
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
    """The error for malformed rows, which names the first. `anything`: whether other rows are left."""
    location, first = refused[0]
    more = f" (the first of {len(refused)} malformed rows)" if len(refused) > 1 else ""
    instead = ", or drop such rows with --skip-bad" if anything else ""
    return PrlhfError(f"{location}: {first}{more}", f"{first.hint}{instead}")


def check_left(rows: Sequence[object], drops: DropCounts, source: str) -> None:
    """Check that a row is left.

    Raises:
        PrlhfError: there is none.
    """
    if not rows:
        raise PrlhfError(f"no comparison is left in {source}: {drops.in_words()}", "check the file and the filters")
