"""PRISM's conversations: comparisons along the chosen path, and turns that cannot be used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prism_raw import ALL_SEEN, JSON, talk, turn

from prlhf.data.prism.conversations import TurnChoice, read_conversation
from prlhf.data.rows import Dropped
from prlhf.errors import PrlhfError
from prlhf.source.values import Malformed

Make = Callable[..., Any]


def test_one_comparison_per_rejected_response_along_the_chosen_path(prism_folder: Make, prism_prep: Make) -> None:
    raw = talk("c0", "ann", turn(0, "no", "yes", "maybe", chosen=1), turn(1, "sure", "never"))
    raw["conversation_history"].reverse()  # turns are identified by their number, not by their place
    data = prism_prep(prism_folder(["ann"], [raw]), **ALL_SEEN)
    first, second = {"role": "user", "content": "Q0"}, {"role": "user", "content": "Q1"}
    history = [first, {"role": "assistant", "content": "yes"}, second]
    assert [(r.id, r.prompt, r.chosen[0]["content"], r.rejected) for r in data.train] == [
        ("c0-0-1", [first], "yes", [{"role": "assistant", "content": "maybe"}]),
        ("c0-0-2", [first], "yes", [{"role": "assistant", "content": "no"}]),
        ("c0-1-1", history, "sure", [{"role": "assistant", "content": "never"}]),
    ]
    assert data.manifest["format"] == "conversational"


USABLE = {  # name: (turns, comparisons, counts in the manifest)
    "no chosen response ends the path": (
        [turn(0, "a", "b"), turn(1, "c", "d", chosen=None), turn(2, "e", "f")],
        1,
        {"without a message or a chosen response": 1, "after such a turn": 1},
    ),
    "an empty chosen response ends it": (
        [turn(0, "a", "b"), turn(1, "EMPTY STRING", "d")],
        1,
        {"without a message or a chosen response": 1},
    ),
    "an empty message ends it": (
        [turn(0, "a", "b"), turn(1, "c", "d", message="EMPTY STRING")],
        1,
        {"without a message or a chosen response": 1},
    ),
    "no rejected response: the path goes on": (
        [turn(0, "a"), turn(1, "c", "d")],
        1,
        {"without a rejected response": 1},
    ),
    "an empty rejected response": ([turn(0, "a", "EMPTY STRING", "b")], 1, {"empty responses": 1}),
    "a response equal to the chosen one": (
        [turn(0, "a", "a", "b")],
        1,
        {"responses equal to the chosen one": 1},
    ),
    "nothing but equal responses": (
        [turn(0, "a", "a"), turn(1, "c", "d", "e")],
        2,
        {"without a rejected response": 1, "responses equal to the chosen one": 1},
    ),
}


@pytest.mark.parametrize(("turns", "comparisons", "counted"), USABLE.values(), ids=USABLE)
def test_turns_that_cannot_be_used_are_counted(
    turns: list[Any], comparisons: int, counted: dict[str, int], prism_folder: Make, prism_prep: Make
) -> None:
    data = prism_prep(prism_folder(["ann"], [talk("c0", "ann", *turns)]), **ALL_SEEN)
    assert len(data.train) == comparisons
    account = data.manifest["turns"]
    assert account.pop("read") == len(turns)
    assert account.pop("with comparisons") == len({r.prompt_id for r in data.train})
    assert {reason: count for reason, count in account.items() if count} == counted


def test_the_same_text_chosen_twice_is_one_choice(prism_folder: Make, prism_prep: Make) -> None:
    twice = turn(0, "a", "a", "b")
    twice[2]["if_chosen"] = True
    assert len(prism_prep(prism_folder(["ann"], [talk("c0", "ann", twice)]), **ALL_SEEN).train) == 1


BAD_TALKS = {  # a row of the file of conversations -> the message
    "no mapping": ([], "the row is a list"),
    "no user": (talk("c1", ..., turn(0, "a", "b")), "column 'user_id' is missing"),
    "no id": (talk(..., "ann"), "column 'conversation_id' is missing"),
    "no history": (talk("c1", "ann", conversation_history=...), "column 'conversation_history' is missing"),
    "null history": (talk("c1", "ann", conversation_history=None), "'conversation_history' is null"),
    "empty history": (talk("c1", "ann", conversation_history=[]), "'conversation_history' is empty"),
    "a text in the history": (talk("c1", "ann", conversation_history=["hi"]), "a message of 'conversation_history'"),
    "empty message": (talk("c1", "ann", turn(0, "a", "b", message=" ")), "'content of turn 0' is empty"),
    "empty response": (talk("c1", "ann", turn(0, "a", "")), "'content of turn 0' is empty"),
    "a turn left out": (talk("c1", "ann", turn(0, "a", "b"), turn(2, "a", "b")), "turn 1 is missing"),
    "two messages": (talk("c1", "ann", turn(0, "a"), turn(0, "b")), "turn 0 has 2 user messages, not one"),
    "two choices": (
        talk("c1", "ann", [*turn(0, "a", "b"), turn(0, "c")[1]]),
        "turn 0 has 2 different chosen responses, not one",
    ),
    "unknown role": (talk("c1", "ann", [{"turn": 0, "role": "bot", "content": "a"}]), "'role' is 'bot'"),
    "negative turn": (talk("c1", "ann", turn(-1, "a", "b")), "'turn' is -1, not a number from 0"),
    "no choice made": (
        talk("c1", "ann", [{"turn": 0, "role": "model", "content": "a", "if_chosen": None}]),
        "'if_chosen' is null, not true or false",
    ),
    "feedback": (talk("c1", "ann", open_feedback=3), "'open_feedback' is a number"),
    "ratings": (talk("c1", "ann", choice_attributes=[1]), "'choice_attributes' is a list, not a mapping"),
    "another conversation of that id": (
        talk("c0", "ann", turn(0, "a", "b")),
        "id 'c0' was used above for another conv",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_TALKS.values(), ids=BAD_TALKS)
def test_bad_conversations(row: Any, message: str, prism_folder: Make, prism_prep: Make) -> None:
    source = prism_folder(["ann"], [talk("c0", "ann"), row])
    with pytest.raises(PrlhfError) as error:
        prism_prep(source, **ALL_SEEN)
    assert error.value.message.startswith(f"{source}/conversations.jsonl:2: ")
    assert message in error.value.message
    data = prism_prep(source, bad_rows="skip", **ALL_SEEN)
    assert (data.manifest["dropped"]["malformed"], len(data.train)) == (1, 1)


@given(st.sampled_from(["turn", "role", "content", "if_chosen"]), JSON)
def test_no_conversation_brings_a_traceback(key: str, value: Any) -> None:
    history = turn(0, "a", "b")
    history[1][key] = value
    for row in (
        value,
        talk("c0", "ann", history),
        talk("c0", "ann", conversation_history=value),
        talk("c0", "ann", choice_attributes=value, open_feedback=value),
        talk("c0", "ann", choice_attributes={"values": value}),
    ):
        with contextlib.suppress(Malformed, Dropped):
            read = read_conversation(row, {"ann"})
            json.dumps([read.rows(""), read.feedback], default=vars, allow_nan=False, ensure_ascii=False).encode()


def test_an_example_never_holds_the_history() -> None:
    """The history of a later turn contains the response that was chosen in the turn to judge."""
    prompt = [
        {"role": "user", "content": "Q0"},
        {"role": "assistant", "content": "secret"},
        {"role": "user", "content": "Q1"},
    ]
    assert "secret" not in json.dumps(TurnChoice(1, prompt, "a", ["b"]).example)
