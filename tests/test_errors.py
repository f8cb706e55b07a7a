"""Errors that the user can fix, and the nearest known names."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from prlhf.errors import PrlhfError, nearest, one_line


def test_message_and_hint_stand_in_one_line() -> None:
    error = PrlhfError("alpha = 2 is out of range", "set it lower")
    assert (error.message, error.hint) == ("alpha = 2 is out of range", "set it lower")
    assert str(error) == "alpha = 2 is out of range; set it lower"
    assert str(PrlhfError("only this")) == "only this"


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("tldrr", ["tldr", "demo"], "did you mean 'tldr'?"),
        ("user_lr", ["user_rl", "user_l"], "did you mean 'user_l' or 'user_rl'?"),
        ("zzz", ["tldr", "demo"], "known: demo, tldr"),
        ("", ["b", "a"], "known: a, b"),
        ("zzz", list("abcdefghijkl"), "known: a, b, c, d, e, f, g, h, i, j, … (12 in all)"),
        ("x", [], "known: "),
    ],
)  # fmt: skip
def test_nearest(name: str, known: list[str], said: str) -> None:
    assert nearest(name, known) == said


def test_nearest_takes_any_iterable_once() -> None:
    assert nearest("demo", iter(["demo"])) == "did you mean 'demo'?"


def test_a_message_is_one_line_whatever_value_it_names() -> None:
    assert str(PrlhfError("'a\n\tb' is refused", "leave it out")) == "'a b' is refused; leave it out"


def test_a_pydantic_error_becomes_its_first_fault() -> None:
    class Model(BaseModel):
        base: str
        sums: dict[str, int]

    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"sums": {"a": "x"}})
    assert one_line(caught.value) == "base: field required"
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"base": "b", "sums": {"a": "x"}})
    assert one_line(caught.value).startswith("sums.a: input should be a valid integer")
