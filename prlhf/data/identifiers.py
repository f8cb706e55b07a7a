"""Ids as text: numbers that a spreadsheet or pandas changed, ids that look alike, and ids shared by several users."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from prlhf.data.rows import Row
from prlhf.dataset import GENERIC
from prlhf.source.values import Malformed, kind, text

GROUPS = ("all", "seen", "unseen")  # values of `generate --users` besides ids
EXACT = 2**53  # from here on, two whole numbers can be the same float
NOTHING = {"nan", "none", "null", "<na>", "n/a", "nat"}  # texts that mark a missing value in CSV files

NAMED = "several users share the id, so the row is named ID/USER"

_WHOLE = re.compile(r"[+-]?\d+\.0+")


def identifier(value: Any, name: str, cell: bool = False) -> str:
    """Return an id as text. Whole numbers become their digits, also 12.0, as pandas writes 12 in a column with gaps.

    `cell`: the value is a cell of a CSV file, where numbers are text: `12.0` becomes 12, and `nan` is a missing value.

    Raises:
        Malformed: the value is a boolean, NaN, a fraction, a number that is not exact, blank or missing.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _digits(int(value))
    if isinstance(value, float):
        return _whole(value, name)
    found = text(value, name)
    if cell and _WHOLE.fullmatch(found.strip()):
        return found.strip().partition(".")[0]
    if cell and found.strip().lower() in NOTHING:
        raise Malformed(f"'{name}' is missing: the cell holds '{found}'")
    return found


def user_identifier(value: Any, name: str, cell: bool = False) -> str:
    """Return the id of a user as text.

    Raises:
        Malformed: the value is not an id, or is the id of the generic user.
    """
    found = identifier(value, name, cell)
    if found == GENERIC:
        raise Malformed(f"'{name}' is '{GENERIC}', which is reserved for the user of index 0")
    return found


def look_alikes(users: Iterable[str]) -> list[str]:
    """Return warnings about user ids that are easily confused, or that `generate --users` cannot name."""
    ids = list(dict.fromkeys(users))
    twins: dict[str, list[str]] = {_folded(GENERIC): [GENERIC]}
    for user in ids:
        twins.setdefault(_folded(user), []).append(user)
    alike = [f"{names[0]!r} and {names[1]!r}" for names in twins.values() if len(names) > 1]
    lines = []
    if alike:
        lines.append(
            f"{len(alike)} pairs of user ids differ only in blanks, case or Unicode form, and are different users: "
            f"{_some(alike)}"
        )
    if unnamed := [repr(user) for user in ids if user in GROUPS or user != user.strip()]:
        lines.append(
            f"{len(unnamed)} users cannot be named in `generate --users` (blanks at an end, or the name of a group): "
            f"{_some(unnamed)}"
        )
    return lines


def _whole(value: float, name: str) -> str:
    if value != value:
        raise Malformed(f"'{name}' is {kind(value)}, not text")
    if not value.is_integer():
        raise Malformed(f"'{name}' is {value}, not text or a whole number")
    if abs(value) >= EXACT:
        raise Malformed(f"'{name}' is {value}, a number too large to be exact", "write the id as text")
    return str(int(value))


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python refuses to write numbers of more than 4,300 digits
        raise Malformed("an id is a number of thousands of digits", "write the id as text") from error


def _folded(user: str) -> str:
    return unicodedata.normalize("NFKC", user).strip().casefold()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def own_ids(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Give rows whose id is shared by several users an id of their own, such as `q1/ann`.

    Returns:
        All rows, and the number of rows whose id was changed.
    """
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
