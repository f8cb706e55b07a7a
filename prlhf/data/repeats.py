"""What can only be told from all rows: prompts that responses repeat, and ids that are not the rows' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prlhf.data.messages import REPEATED, without_repeated_text
from prlhf.data.rows import Row

NAMED = "several users share the id, so the row is named ID/USER"


@dataclass
class Changed:
    """How many rows were changed, by what was done, and what a reader should know besides."""

    counts: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def take_off_prompts(parts: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], Changed]:
    """Rows of text without the prompt that both responses repeat, where most rows have that.

    A few such rows are an accident ("Hello" answered by "Hello!"), and are kept as they are, with a warning.
    """
    changed = Changed()
    found = {part: [_shorter(row) for row in rows] for part, rows in parts.items()}
    total = sum(map(len, found.values()))
    repeated = sum(row is not None for rows in found.values() for row in rows)
    if repeated * 2 <= total:
        if repeated:
            changed.warnings.append(f"{repeated} rows have responses that both begin with the prompt: kept as they are")
        return {part: list(rows) for part, rows in parts.items()}, changed
    changed.counts[REPEATED] = repeated
    return {
        part: [new or old for new, old in zip(found[part], rows, strict=True)] for part, rows in parts.items()
    }, changed


def own_ids(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows, those whose id names an item that several users rated with ids of their own, `q1/ann`; and how many."""
    users: dict[str, set[str]] = {}
    for row in rows:
        users.setdefault(row.id, set()).add(row.user_id)
    taken = {row_id for row_id, sharing in users.items() if len(sharing) == 1}
    renamed = []
    for row in rows:
        name = _free(f"{row.id}/{row.user_id}", taken) if len(users[row.id]) > 1 else row.id
        taken.add(name)
        renamed.append(replace(row, id=name))
    return renamed, sum(len(users[row.id]) > 1 for row in rows)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _shorter(row: Row) -> Row | None:
    if not (isinstance(row.prompt, str) and isinstance(row.chosen, str) and isinstance(row.rejected, str)):
        return None
    rest = without_repeated_text(row.prompt, row.chosen, row.rejected)
    return replace(row, chosen=rest[0], rejected=rest[1]) if rest and rest[0] != rest[1] else None
