"""Token ids and row layout against literal values, with a tokenizer of single letters and one merge (`ab`)."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from prlhf.dataset import Comparison, Text
from prlhf.errors import PrlhfError
from prlhf.model.encoding import Encoded, Encoder
from prlhf.model.fitting import TooLong
from prlhf.model.readings import pad_rows, padded, readings_of

EOS, PAD = 0, 1
CHAT = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '<eos>' if m.role == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def letters(**options: Any) -> PreTrainedTokenizerFast:
    """`a` is 2, `b` is 3, and so on; `ab` is one token, the last."""
    alphabet = [*string.ascii_lowercase, ":", "\n", "ab"]
    vocabulary = {"<eos>": EOS, "<pad>": PAD} | {letter: i for i, letter in enumerate(alphabet, start=2)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", **options)


AB = 30


def encoder(user_tokens: int = 2, limit: int = 100, chat: bool = False, **options: Any) -> Encoder:
    tokenizer = letters()
    if chat:
        tokenizer.chat_template = CHAT
    return Encoder(tokenizer, user_tokens, limit, **options)


def comparison(prompt: Text = "cd", chosen: Text = "e", rejected: Text = "fg", text: str = "") -> Comparison:
    return Comparison("row-7", prompt, chosen, rejected, "ann", 3, text, "p", True)


def said(content: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# ---- rows ----


def test_layout_of_rows() -> None:
    """| padding | 2 user slots | text + prompt || response | padding |, the boundary at column 5 for both."""
    rows = pad_rows([[11, 12, 13], [21]], [[31], [41, 42]], [5, 0], 2, PAD)
    assert rows.ids.tolist() == [[1, 1, 11, 12, 13, 31, 1], [1, 1, 1, 1, 21, 41, 42]]
    assert rows.mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]]
    assert rows.slots.int().tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]]
    assert rows.user_indices.tolist() == [5, 0]
    assert rows.start == 5


def test_rows_of_a_batch_are_all_chosen_then_all_rejected() -> None:
    batch = [Encoded([9], [11], [31], [32, 33], 5), Encoded([], [21], [41], [42], 6)]
    rows = padded(readings_of(batch, [0, 8]), 1, PAD)
    assert rows.ids.tolist() == [[1, 9, 11, 31, 1], [1, 1, 21, 41, 1], [1, 9, 11, 32, 33], [1, 1, 21, 42, 1]]
    assert rows.slots.int().argmax(1).tolist() == [0, 1, 0, 1]
    assert rows.user_indices.tolist() == [0, 8, 0, 8]  # in place of the comparisons' own


def test_rows_without_responses_or_slots() -> None:
    rows = pad_rows([[11], [21, 22]], [[], []], [1, 2], 0, PAD)
    assert rows.ids.tolist() == [[1, 11], [21, 22]]
    assert (rows.start, rows.slots.any().item()) == (2, False)


ids = st.lists(st.integers(2, 30), min_size=1, max_size=6)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5), st.integers(0, 3))
def test_every_row_reads_back_whole(pairs: list[tuple[list[int], list[int]]], tokens: int) -> None:
    rows = pad_rows([b for b, _ in pairs], [r for _, r in pairs], [0] * len(pairs), tokens, PAD)
    for i, (before, response) in enumerate(pairs):
        real = rows.mask[i].bool()
        assert rows.ids[i][real & ~rows.slots[i]].tolist() == before + response
        assert rows.ids[i, rows.start : rows.start + len(response)].tolist() == response
        columns = torch.nonzero(real).flatten()
        assert columns.tolist() == list(range(columns[0], columns[0] + tokens + len(before) + len(response)))
        assert torch.nonzero(rows.slots[i]).flatten().tolist() == columns[:tokens].tolist()


# ---- plain text ----


def test_a_comparison_in_ids() -> None:
    encoded = encoder().comparison(comparison(text="ab"))
    assert encoded == Encoded(text=[AB], prompt=[4, 5], chosen=[6, EOS], rejected=[7, 8, EOS], user_index=3)


def test_text_about_the_user_can_be_left_out() -> None:
    assert encoder(use_text=False).comparison(comparison(text="ab")).text == []


def test_a_token_across_the_boundary_is_split() -> None:
    """`ca` + `b` is c, ab as one text; the prompt keeps its own ids, those it has when a response is written."""
    encoded = encoder().comparison(comparison(prompt="ca", chosen="b", rejected="c"))
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == ([4, 2], [3, EOS], [4, EOS])


@pytest.mark.parametrize("response", ["e", "e<eos>", "e<eos><eos>"])
def test_one_end_of_text_whatever_the_data_holds(response: str) -> None:
    assert encoder().comparison(comparison(chosen=response)).chosen == [6, EOS]


def test_the_name_of_the_end_within_a_response_is_plain_text() -> None:
    """`e<eos>f` is e, <, e, o, s, >, f, of which this tokenizer knows but the letters: nothing is cut at it."""
    one = encoder()
    assert one.comparison(comparison(chosen="e<eos>f<eos>")).chosen == [6, 6, 16, 20, 7, EOS]
    assert one.changes["specials"] == 1


def test_an_empty_response_is_the_end_of_text() -> None:
    one = encoder()
    assert one.comparison(comparison(chosen="")).chosen == [EOS]
    assert one.changes["empty"] == 1


@pytest.mark.parametrize("prompt", ["cd", said("cd", "user")], ids=["plain", "conversation"])
def test_a_prompt_is_tokenized_once(prompt: Text) -> None:
    seen: list[str] = []

    class Counted(PreTrainedTokenizerFast):
        def __call__(self, text: str, **options: Any) -> Any:  # apply_chat_template comes by here too
            seen.append(text)
            return super().__call__(text, **options)

    plain = isinstance(prompt, str)
    tokenizer = Counted(tokenizer_object=letters()._tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=CHAT)
    chosen, rejected = ("e", "fg") if plain else (said("e"), said("fg"))
    encoded = Encoder(tokenizer, 2, 100).comparison(comparison(prompt, chosen, rejected))
    assert seen.count("cd" if plain else "u:cd\na:") == 1
    assert encoded == encoder(chat=not plain).comparison(comparison(prompt, chosen, rejected))


def test_one_comparison_leaves_nothing_to_the_next() -> None:
    """Though the prompt in hand is remembered: changing what was returned changes no later answer."""
    rows = [comparison("cd"), comparison("cd", chosen="h"), comparison("cdef"), comparison("cd")]
    one = encoder(prompt_limit=3)
    for row in rows:
        encoded = one.comparison(row)
        assert encoded == encoder(prompt_limit=3).comparison(row)
        encoded.prompt.clear()


# ---- budgets ----


def test_long_prompts_lose_their_beginning_and_are_counted() -> None:
    short = encoder(prompt_limit=2)
    assert short.comparison(comparison(prompt="cdef", chosen="g")).prompt == [6, 7]
    assert short.comparison(comparison(prompt="cd")).prompt == [4, 5]
    assert short.cut == {"prompts": 1, "histories": 0, "responses": 0}


def test_a_cut_prompt_keeps_its_responses_whole() -> None:
    encoded = encoder(prompt_limit=1).comparison(comparison(prompt="cdef", chosen="gh", rejected="i"))
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == ([7], [8, 9, EOS], [10, EOS])


def test_long_responses_lose_their_end_and_are_counted() -> None:
    """limit 8 = 2 user tokens + 1 of text + 2 of prompt + 3 of response."""
    tight = encoder(limit=8)
    encoded = tight.comparison(comparison(chosen="efgh", rejected="ef", text="z"))
    assert (encoded.chosen, encoded.rejected) == ([6, 7, 8], [6, 7, EOS])
    assert tight.cut == {"prompts": 0, "histories": 0, "responses": 1}


def test_a_prompt_that_leaves_no_room_is_refused_by_name() -> None:
    """limit 8 less 2 user tokens, 1 of text and 1 of response: 4 are left."""
    assert encoder(limit=8).comparison(comparison(prompt="cdef", text="z")).chosen == [6]
    with pytest.raises(PrlhfError) as error:
        encoder(limit=8).comparison(comparison(prompt="cdefg", text="z"))
    assert "the prompt of 'row-7' has 5 tokens, and 4 fit" in error.value.message
    assert "max_prompt_tokens" in error.value.hint


def test_text_alone_may_be_too_long() -> None:
    """It is what the message names; a limit to the prompt does not help and is not spoken of."""
    for prompt_limit in (None, 2):
        with pytest.raises(TooLong) as error:
            encoder(limit=8, prompt_limit=prompt_limit).comparison(comparison(text="zzzzzzzzzz"))
        assert "the text about the user of 'row-7' has 10 tokens" in error.value.message
        assert "user_text=false" in error.value.hint
        assert "max_prompt" not in str(error.value)


# ---- conversations ----


def test_conversations_pass_through_the_chat_template() -> None:
    """u:cd\\na: || e <eos>, and what the template puts after the end is left out."""
    encoded = encoder(chat=True).comparison(comparison(said("cd", "user"), said("e"), said("fg")))
    colon, newline, u = 28, 29, 22
    assert encoded.prompt == [u, colon, 4, 5, newline, 2, colon]
    assert (encoded.chosen, encoded.rejected) == ([6, EOS], [7, 8, EOS])


def test_a_template_that_rewrites_the_prompt() -> None:
    """Where prompt + response does not begin with the prompt's ids, the response is tokenized alone."""
    anew = encoder(chat=True)
    anew.tokenizer.chat_template = "{{ 'x' if messages | length > 1 }}" + CHAT
    encoded = anew.comparison(comparison(said("cd", "user"), said("e"), said("fg")))
    assert (encoded.prompt[0], encoded.chosen, encoded.rejected) == (22, [6, EOS], [7, 8, EOS])


@pytest.mark.parametrize(("prompt", "chosen"), [("cd", said("e")), (said("cd", "user"), "e")])
def test_plain_and_conversational_do_not_mix(prompt: Text, chosen: Text) -> None:
    with pytest.raises(PrlhfError, match="have different formats; make both plain or both conversational"):
        encoder(chat=True).comparison(comparison(prompt, chosen, chosen))


def test_a_base_without_chat_template_is_refused() -> None:
    with pytest.raises(PrlhfError, match="no chat template; use an instruct model"):
        encoder().comparison(comparison(said("cd", "user"), said("e"), said("f")))
