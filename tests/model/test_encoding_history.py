"""Conversations under a token budget: the oldest turns go first, the user's last message never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.dataset import Comparison, Message
from prlhf.errors import PrlhfError
from prlhf.model.encoding import Encoder, shorter_histories

# As strict as Llama-2's or Mistral's: after a system message, user and assistant take turns, the user first.
STRICT = """
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{%- for m in turns -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif -%}
{%- endfor -%}
{%- for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor -%}
{%- if add_generation_prompt %}a:{% endif -%}
"""
NAMES = {"s": "system", "u": "user", "a": "assistant"}
MakeEncoder = Callable[..., Encoder]


def talk(text: str) -> list[Message]:
    """`u:hello|a:well|` as messages."""
    turns = (turn.split(":") for turn in text.split("|") if turn)
    return [{"role": NAMES[role], "content": content} for role, content in turns]


HISTORY = "s:be kind|u:my boss sold boats|a:my uncle lost cars|u:my sister hid lamps|a:the nurse|u:who?|"
SHORTER = [
    HISTORY,
    "s:be kind|u:my sister hid lamps|a:the nurse|u:who?|",
    "s:be kind|u:who?|",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tiny_base)
    loaded.chat_template = STRICT
    return loaded


@pytest.fixture
def make_encoder(tokenizer: Any) -> MakeEncoder:
    def make(limit: int = 1000, **options: Any) -> Encoder:
        return Encoder(tokenizer, 2, limit, **options)

    return make


def size(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text + "a:", add_special_tokens=False).input_ids)


def row(prompt: str = HISTORY, text: str = "") -> Comparison:
    chosen, rejected = ([{"role": "assistant", "content": content}] for content in ("my boss", "boats"))
    return Comparison("row-7", talk(prompt), chosen, rejected, "ann", 3, text, "p", True)


# ---- what is dropped ----


def test_the_oldest_turns_go_first() -> None:
    assert list(shorter_histories(talk(HISTORY))) == [talk(text) for text in SHORTER]


@pytest.mark.parametrize(
    ("prompt", "shorter"),
    [
        ("u:one|", []),
        ("s:kind|u:one|", []),
        ("u:one|u:two|", ["u:two|"]),
        ("a:hello|u:one|a:two|u:three|", ["u:one|a:two|u:three|", "u:three|"]),
        ("u:one|a:two|u:three|a:and so|", ["u:three|a:and so|"]),  # a begun answer stays with its question
        ("a:hello|", []),
    ],
)
def test_the_rest_of_a_history_starts_with_the_user(prompt: str, shorter: list[str]) -> None:
    assert list(shorter_histories(talk(prompt))) == [talk(text) for text in (prompt, *shorter)]


@given(st.lists(st.sampled_from("sua"), min_size=1, max_size=8))
def test_every_shorter_history_is_an_end_of_the_whole(roles: list[str]) -> None:
    messages = [{"role": NAMES[role], "content": str(i)} for i, role in enumerate(roles)]
    head = messages[:1] if roles[0] == "s" else []
    whole, *shorter = shorter_histories(messages)
    assert whole == messages
    lengths = [len(messages), *map(len, shorter)]
    assert lengths == sorted(set(lengths), reverse=True)
    for kept in shorter:
        assert kept[: len(head)] == head
        rest = kept[len(head) :]
        assert rest == messages[-len(rest) :]
        assert rest[0]["role"] == "user"
    if shorter:
        assert [m["role"] for m in shorter[-1][len(head) :]].count("user") == 1


# ---- under max_prompt_tokens ----


@pytest.mark.parametrize("left", [0, 1, 2])
def test_as_much_history_as_fits(left: int, make_encoder: MakeEncoder, tokenizer: Any) -> None:
    encoder = make_encoder(prompt_limit=size(tokenizer, SHORTER[left]))
    encoded = encoder.comparison(row())
    assert tokenizer.decode(encoded.prompt) == SHORTER[left] + "a:"
    assert encoder.cut == {"prompts": 0, "histories": int(left > 0), "responses": 0}


def test_one_token_less_costs_a_turn(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    encoder = make_encoder(prompt_limit=size(tokenizer, SHORTER[0]) - 1)
    assert tokenizer.decode(encoder.prompt(talk(HISTORY), 1000, "x")) == SHORTER[1] + "a:"


def test_the_responses_stay_whole(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    cut, whole = make_encoder(prompt_limit=size(tokenizer, SHORTER[2])), make_encoder()
    first, second = cut.comparison(row()), whole.comparison(row())
    assert (first.chosen, first.rejected) == (second.chosen, second.rejected)
    assert len(first.prompt) < len(second.prompt)
    assert whole.cut["histories"] == 0


def test_the_users_last_message_is_never_cut(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    least = size(tokenizer, SHORTER[2])
    with pytest.raises(PrlhfError) as error:
        make_encoder(prompt_limit=least - 1).comparison(row())
    assert "the user's last message in the prompt of 'row-7' alone" in error.value.message
    assert f"has {least} tokens" in error.value.message
    assert f"and {least - 1} fit (max_prompt_tokens)" in error.value.message
    assert error.value.hint == "shorten it, or raise max_prompt_tokens"


# ---- under the context ----


def test_the_context_costs_turns_too(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    """2 user tokens, the text about the user, the prompt, and the longer response: all of it, in place of a turn."""
    about = "she likes long tables"
    text = len(tokenizer(about, add_special_tokens=False).input_ids)
    whole = make_encoder().comparison(row(text=about))
    longer = max(len(whole.chosen), len(whole.rejected))
    for less, kept in ((0, SHORTER[1]), (1, SHORTER[2])):
        encoder = make_encoder(limit=2 + text + size(tokenizer, SHORTER[1]) + longer - less)
        encoded = encoder.comparison(row(text=about))
        assert tokenizer.decode(encoded.prompt) == kept + "a:"
        assert encoder.cut == {"prompts": 0, "histories": 1, "responses": 0}
        assert (encoded.chosen, encoded.rejected) == (whole.chosen, whole.rejected)


def test_a_long_response_gets_a_quarter_of_the_room(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    """No history leaves it one token, and none is given up for more than that."""
    long = replace(row(), chosen=[{"role": "assistant", "content": "my boss sold boats. " * 20}])
    for left in (0, 1):
        room = -(-4 * size(tokenizer, SHORTER[left]) // 3)  # three quarters of it are the prompt's
        encoded = make_encoder(limit=2 + room).comparison(long)
        assert tokenizer.decode(encoded.prompt) == SHORTER[left] + "a:"
        assert len(encoded.chosen) == room - len(encoded.prompt) >= room // 4


def test_a_last_message_over_the_context_is_refused_by_name(make_encoder: MakeEncoder, tokenizer: Any) -> None:
    """A quarter of the room is the response's, whatever the response."""
    least = size(tokenizer, SHORTER[2])
    fit = least - least // 4
    with pytest.raises(PrlhfError, match=f"'row-7' alone has {least} tokens .* {fit} fit .context {least + 2}, "):
        make_encoder(limit=2 + least).comparison(row())


def test_the_tighter_budget_is_the_one_named(make_encoder: MakeEncoder) -> None:
    with pytest.raises(PrlhfError, match=r"and 0 fit \(context 3, less"):
        make_encoder(limit=3, prompt_limit=1).comparison(row())
