"""Comparisons of several turns, and those that repeat the prompt: one answer is left after one prompt."""

from __future__ import annotations

from collections import Counter

import pytest

from prlhf.dataset import Comparison, Message, Text
from prlhf.errors import PrlhfError
from prlhf.model.chat import one_answer


def talk(text: str) -> list[Message]:
    """`u:hello|a:well` as messages."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": names[turn[0]], "content": turn[2:]} for turn in text.split("|")]


def row(prompt: Text, chosen: Text, rejected: Text) -> Comparison:
    return Comparison("row-7", prompt, chosen, rejected, "ann", 1, "", "p", True)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected", "told"),
    [
        ("u:q", "a:yes", "a:no", ("u:q", "a:yes", "a:no"), {}),
        ("u:q", "a:who?|u:me|a:yes", "a:who?|u:me|a:no", ("u:q|a:who?|u:me", "a:yes", "a:no"), {"turns moved": 1}),
        ("u:q", "u:q|a:yes", "u:q|a:no", ("u:q", "a:yes", "a:no"), {"repeats": 1}),
        (
            "u:q", "u:q|a:who?|u:me|a:yes", "u:q|a:who?|u:me|a:no", ("u:q|a:who?|u:me", "a:yes", "a:no"),
            {"repeats": 1, "turns moved": 1},
        ),
        ("u:q|a:Sure:", "a: red", "a: blue", ("u:q|a:Sure:", "a: red", "a: blue"), {}),
    ],
)  # fmt: skip
def test_one_answer_is_left(
    prompt: str, chosen: str, rejected: str, expected: tuple[str, str, str], told: dict[str, int]
) -> None:
    counts = Counter[str]()
    found = one_answer(row(*map(talk, (prompt, chosen, rejected))), counts)
    assert [found.prompt, found.chosen, found.rejected] == [talk(text) for text in expected]
    assert dict(counts) == told


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        ("a:who?|u:me|a:yes", "a:when?|u:now|a:no", "the chosen response of 'row-7' .* assistant, user, assistant"),
        ("a:yes|u:me|a:yes", "a:no", "the chosen response of 'row-7' .* assistant, user, assistant"),
        ("a:yes", "u:no", "the rejected response of 'row-7' is not one message of the assistant but user"),
        ("a:who?|u:me", "a:who?|u:you", "the chosen response of 'row-7' .* but user"),
    ],
)
def test_words_of_the_user_are_never_a_response(chosen: str, rejected: str, words: str) -> None:
    with pytest.raises(PrlhfError, match=words):
        one_answer(row(talk("u:q"), talk(chosen), talk(rejected)), Counter())


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "left"),
    [
        ("Q: Why? A:", "Q: Why? A: So.", "Q: Why? A: No.", (" So.", " No.")),
        ("Why?", "Why? So.", "No.", None),  # one of the two asks back
        ("I", "It is.", "In a way.", None),  # within a word
        ("Why?", "Why?", "Why? No.", None),  # nothing would be left
        ("", "So.", "No.", None),
    ],
)
def test_a_plain_prompt_that_both_repeat_is_removed(
    prompt: str, chosen: str, rejected: str, left: tuple[str, str] | None
) -> None:
    counts, before = Counter[str](), row(prompt, chosen, rejected)
    found = one_answer(before, counts)
    assert (found.prompt, found.chosen, found.rejected) == (prompt, *(left or (chosen, rejected)))
    assert counts["repeats"] == (left is not None)
