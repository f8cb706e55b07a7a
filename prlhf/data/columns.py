"""The names of columns: the file's and ours, and the option to type when they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prlhf.errors import PrlhfError, nearest
from prlhf.source.values import Malformed

COLUMNS = ("id", "prompt", "chosen", "rejected", "user_id", "user_text")
OPTIONAL = ("id", "user_text")
UNUSED = "none"  # `--column id=none`: ignore the column

# Other names, most likely first; compared without case, blanks, dashes and underscores.
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
    """Check the names given with `--column`.

    Raises:
        PrlhfError: a name is not one of ours, or `none` is given for a required column.
    """
    for ours, theirs in given.items():
        if ours not in COLUMNS:
            raise PrlhfError(f"--column {ours}={theirs} names an unknown column '{ours}'", nearest(ours, COLUMNS))
        if theirs == UNUSED and ours not in OPTIONAL:
            line = f"--column {ours}={UNUSED}: every comparison needs '{ours}'"
            raise PrlhfError(line, f"name the file's column: --column {ours}=NAME")


def column_value(row: Mapping[str, Any], ours: str, name: str) -> Any:
    """Return the value of the column `name`, the file's name for our column `ours`.

    Raises:
        Malformed: there is no such column.
    """
    if name in row:
        return row[name]
    names = [str(key) for key in row]
    found = _proposed(ours, name, names)
    said = f"did you mean '{found}'?" if found else nearest(name, names) if names else "it has no columns"
    raise Malformed(
        f"column '{name}' is missing ({said})", f"name the file's column with --column {ours}={found or 'NAME'}"
    )


def _proposed(ours: str, name: str, names: Iterable[str]) -> str:
    """The most likely column of the file; "" if there is none."""
    by_plain = {_plain(theirs): theirs for theirs in names}
    for word in (_plain(name), *(SYNONYMS[ours] if name == ours else ())):
        if word in by_plain:
            return by_plain[word]
    guess = nearest(name, [one for one in by_plain.values() if one not in COLUMNS])
    return guess.split("'")[1] if guess.startswith("did you mean '") else ""


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
