"""Which of a file's columns is which of ours, and what to type where that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prlhf.data.rows import Malformed
from prlhf.errors import PrlhfError, nearest

COLUMNS = ("id", "prompt", "chosen", "rejected", "user_id", "user_text")
OPTIONAL = ("id", "user_text")
UNUSED = "none"  # `--column id=none`: leave the file's column alone

# What others call it, likeliest first; compared without case, blanks, dashes and underscores.
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "context", "message", "messages", "post", "text"),
    "chosen": ("preferred", "accepted", "winner", "better", "positive", "chosenresponse", "responsechosen", "best"),
    "rejected": ("dispreferred", "refused", "loser", "worse", "negative", "rejectedresponse", "responserejected"),
    "user_id": (
        "annotator", "annotatorid", "user", "userid", "worker", "workerid", "rater", "raterid", "labeler", "labelerid",
        "participant", "participantid", "judge", "judgeid", "uid", "username", "person", "personid", "author",
        "evaluator", "evaluatorid", "who",
    ),
    "user_text": ("bio", "persona", "profile", "about", "description", "userprofile", "demographics"),
    "id": ("rowid", "index"),
}  # fmt: skip


def check_columns(given: Mapping[str, str]) -> None:
    """Refuse names that are not ours, and `none` for a column that is needed."""
    for ours, theirs in given.items():
        if ours not in COLUMNS:
            raise PrlhfError(f"--column {ours}={theirs} names an unknown column '{ours}'", nearest(ours, COLUMNS))
        if theirs == UNUSED and ours not in OPTIONAL:
            line = f"--column {ours}={UNUSED}: every comparison needs '{ours}'"
            raise PrlhfError(line, f"name the file's column: --column {ours}=NAME")


def column_value(row: Mapping[str, Any], ours: str, name: str) -> Any:
    """The value under `name`, the file's name for `ours`. Raises Malformed where there is no such column."""
    if name in row:
        return row[name]
    names = [str(key) for key in row]
    found = _proposed(ours, name, names)
    said = f"did you mean '{found}'?" if found else nearest(name, names) if names else "it has no columns"
    raise Malformed(
        f"column '{name}' is missing ({said})", f"name the file's column with --column {ours}={found or 'NAME'}"
    )


def _proposed(ours: str, name: str, names: Iterable[str]) -> str:
    """The file's column that is likeliest meant; "" where none is."""
    by_plain = {_plain(theirs): theirs for theirs in names}
    for word in (_plain(name), *(SYNONYMS[ours] if name == ours else ())):
        if word in by_plain:
            return by_plain[word]
    guess = nearest(name, [one for one in by_plain.values() if one not in COLUMNS])
    return guess.split("'")[1] if guess.startswith("did you mean '") else ""


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
