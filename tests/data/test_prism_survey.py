"""PRISM's survey: the text about a user, the three highest preferences, and bad rows."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prism_raw import ALL_SEEN, JSON, SURVEY, talk

from prlhf.data.prism.survey import read_participant
from prlhf.errors import PrlhfError
from prlhf.source.values import Malformed

Make = Callable[..., Any]


def test_the_text_about_a_user() -> None:
    assert read_participant(SURVEY, "ratings").text.split("\n") == [
        "In the user's own words: I like boats.",
        "Gender: Female",
        "Ethnicity: White",
        "Religion: pastafarian",
        "Country of birth: Peru",
        "Most important in a response: safety (is safe and does no harm); creativity (is creative and inspiring);"
        " fluency (is fluent and well written)",
    ]
    assert read_participant({"user_id": 7}, "ratings").text == read_participant({"user_id": 7}, "order").text == ""


@pytest.mark.parametrize(
    ("prefs", "changes", "top"),
    [
        ("ratings", {}, ["safety", "creativity", "fluency"]),  # 95 for `other` without a text
        ("ratings", {"other_text": "humour"}, ["humour", "safety", "creativity"]),
        ("ratings", {"values": 80.5}, ["safety", "values", "creativity"]),  # ties: the codebook's order
        ("order", {}, ["values", "fluency", "factuality"]),
    ],
)
def test_the_three_highest_preferences(prefs: Any, changes: dict[str, Any], top: list[str]) -> None:
    row = SURVEY | {"stated_prefs": SURVEY["stated_prefs"] | changes}
    assert read_participant(row, prefs).stated_prefs_top == top


BAD_SURVEY = {
    "no id": ({"age": "old"}, "column 'user_id' is missing"),
    "the generic user": ({"user_id": "generic"}, "'user_id' is 'generic'"),
    "age": ({"user_id": "bob", "age": 40}, "'age' is a number, not text"),
    "preferences": ({"user_id": "bob", "stated_prefs": "safety"}, "'stated_prefs' is text, not a mapping"),
    "a rating": (
        {"user_id": "bob", "stated_prefs": {"safety": True}},
        "'stated_prefs.safety' is true or false, not a nu",
    ),
    "another participant of that id": ({"user_id": "ann", "age": "old"}, "id 'ann' was used above for another part"),
}


@pytest.mark.parametrize(("row", "message"), BAD_SURVEY.values(), ids=BAD_SURVEY)
def test_bad_survey_rows(row: Any, message: str, prism_folder: Make, prism_prep: Make) -> None:
    source = prism_folder(["ann", row], [talk("c0", "ann"), talk("c1", "bob")])
    with pytest.raises(PrlhfError) as error:
        prism_prep(source, **ALL_SEEN)
    assert error.value.message.startswith(f"{source}/survey.jsonl:2: ")
    assert message in error.value.message
    dropped = prism_prep(source, bad_rows="skip", **ALL_SEEN).manifest["dropped"]
    assert (dropped["malformed"], dropped["conversation without a survey row"]) == (1, 1)


@given(st.sampled_from(sorted(SURVEY)), JSON, st.booleans())
def test_no_survey_row_brings_a_traceback(key: str, value: Any, nested: bool) -> None:
    row = copy.deepcopy(SURVEY)
    inner = row[key]
    row[key] = dict.fromkeys(inner, value) if nested and isinstance(inner, dict) else value
    for prefs in ("ratings", "order"):
        for raw in (row, value):
            with contextlib.suppress(Malformed):
                read = read_participant(raw, prefs)  # type: ignore[arg-type]
                json.dumps([read.text, read.material], allow_nan=False, ensure_ascii=False).encode()
