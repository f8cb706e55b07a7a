"""One comparison on its way from a raw file to the prepared data set, and the checks every raw value passes.

A check that fails raises `Malformed` with what is wrong. `RowReader` adds where the row stands, and either refuses the
data or drops and counts the row; `DropCounts` accounts for every row that was dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from prlhf.dataset import Text
from prlhf.errors import PrlhfError, nearest
from prlhf.progress import Progress
from prlhf.source.formats import Raw, RawRows


@dataclass(frozen=True)
class Row:
    """A well-formed comparison by one user, not yet indexed."""

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    user_id: str
    user_text: str = ""


@dataclass(frozen=True)
class LoadedData:
    """What an adapter hands to `prepare`. `order`: the training users, in the order they are indexed."""

    train: list[Row]
    eval: list[Row]
    order: list[str]
    source: str
    options: dict[str, Any]  # the settings this adapter heeds
    counts: dict[str, Any]  # `DropCounts.report()`: rows read, and what each filter took
    notes: dict[str, Any] = field(default_factory=dict)  # further keys of the manifest
    warnings: list[str] = field(default_factory=list)
    preferences: dict[str, str] = field(default_factory=dict)  # user id -> true preference in words, where known
    prompts: list[Text] = field(default_factory=list)  # of the data set's own, to generate from
    judging: list[dict[str, Any]] = field(default_factory=list)  # (prompt, user) pairs to judge, with material


class Malformed(Exception):
    """What is wrong with a row, and what to do about it."""

    def __init__(self, why: str, hint: str = "fix the row") -> None:
        super().__init__(why)
        self.hint = hint


class Dropped(Exception):
    """A well-formed row that a filter takes out; the text is the filter's name."""


def mapping(value: Any, name: str = "the row") -> Mapping[str, Any]:
    """`value` if it is a mapping; raises Malformed if it is not."""
    if not isinstance(value, Mapping):
        raise Malformed(f"{name} is {kind(value)}, not a mapping")
    return value


def column(row: Mapping[str, Any], name: str, hint: str = "fix the row") -> Any:
    """The value under `name`, which may be null but must be there."""
    if name in row:
        return row[name]
    raise Malformed(f"column '{name}' is missing ({nearest(name, [str(key) for key in row])})", hint)


def text(value: Any, name: str) -> str:
    """A string with at least one character that is no whitespace; returned as it is."""
    if not any_text(value, name).strip():
        raise Malformed(f"'{name}' is empty")
    return str(value)


def any_text(value: Any, name: str) -> str:
    """A string, empty or not."""
    if not isinstance(value, str):
        raise Malformed(f"'{name}' is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can say "\ud800", which no file can hold
        raise Malformed(f"'{name}' holds half a surrogate pair, which is no Unicode text") from error
    return value


def kind(value: Any) -> str:
    """A value's type in words a reader of JSON knows."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"


MALFORMED, REPEAT, EQUAL = "malformed", "repeat", "equal pair"
NOT_AN_ID = "fix the row, or leave such a column out with --column id=none"
EXAMPLES = 20  # malformed rows named one by one in the manifest
PER_ADVANCE = 256  # rows per step of the bar: drawing it costs more than reading a row

Convert = Callable[[Any, int], Row]  # (raw value, its number from 1) -> Row, or raises Malformed or Dropped


class Identified(Protocol):
    """What a reader reads: rows, and what rows are made of if a data set keeps that in separate files."""

    @property
    def id(self) -> str:
        """The id, unique within a part."""


T = TypeVar("T", bound=Identified)


class DropCounts:
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


class RowReader:
    """Reads the parts of one data set. Malformed rows are dropped and counted; `strict` then refuses the part."""

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


def check_left(rows: Sequence[object], drops: DropCounts, source: str) -> None:
    """Refuse to go on with nothing."""
    if not rows:
        raise PrlhfError(f"no comparison is left of {source}: {drops.in_words()}", "check the file and the filters")
