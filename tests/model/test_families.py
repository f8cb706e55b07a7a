"""Every family of `families.py`: what the model sees is what the template writes, and turns end where it ends them."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES, Family

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.dataset import GENERIC, Comparison, Message, Text, prompt_id
from prlhf.errors import PrlhfError
from prlhf.generate import decoding
from prlhf.generate.baselines import baseline_of
from prlhf.generate.readers import Reader
from prlhf.generate.requests import WriteRequest, plan_requests
from prlhf.model.base import Base
from prlhf.model.chat import Chat
from prlhf.model.checkpoint import Policy, assemble
from prlhf.model.encoding import Encoded, Encoder

CHATS = [family for family in FAMILIES if family.template]
chats = pytest.mark.parametrize("family", CHATS, ids=lambda family: family.name)
everyone = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def talk(*turns: str, system: str = "") -> list[Message]:
    """The user and the assistant in turn."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def said(family: Family, content: str) -> Text:
    return [{"role": "assistant", "content": content}] if family.template else content


def asked(family: Family) -> Text:
    return talk("hi") if family.template else "hi"


def encoder(family: Family, limit: int = 1000, **options: Any) -> Encoder:
    return Encoder(family.tokenizer(), 0, limit, template_options=dict(family.options), **options)


def encode(one: Encoder, prompt: Text, chosen: Text, rejected: Text, text: str = "") -> Encoded:
    return one.comparison(Comparison("row", prompt, chosen, rejected, "ann", 1, text, prompt_id(prompt), True))


@everyone
def test_prompt_and_response_are_the_templates_words(family: Family) -> None:
    """To the letter, up to the token that ends the turn and nothing after it."""
    one = encoder(family)
    encoded = encode(one, asked(family), said(family, "ok"), said(family, "no"))
    assert one.tokenizer.decode(encoded.prompt) == family.shown
    assert one.tokenizer.decode(encoded.chosen) == family.said
    assert one.tokenizer.decode(encoded.rejected) == family.said.replace("ok", "no")
    assert encoded.chosen[-1] == one.tokenizer.convert_tokens_to_ids(family.end)
    assert encoded.chosen.count(encoded.chosen[-1]) == 1


@chats
def test_whole_conversations_round_trip(family: Family) -> None:
    """Of several turns and with a system message where there is a place: what transformers makes of the whole."""
    one = encoder(family)
    prompt = talk("hi", "ok", "who?", system="" if family.folds_system else "be kind")
    encoded = encode(one, prompt, said(family, "me"), said(family, "you"))
    whole = one.tokenizer.apply_chat_template([*prompt, *said(family, "me")], tokenize=False, **family.options)
    whole = whole[: whole.rindex("me") + 2] + family.said[family.said.index("ok") + 2 :]
    found = one.tokenizer.decode(encoded.prompt + encoded.chosen)
    if family.name == "deepseek-r1":  # its template takes thoughts out of finished turns, also the one it opens
        found = found.replace("<think>\n\n</think>\n\n", "")
    if family.name == "qwen-3-no-thoughts":
        assert found.count("<think>") == 1
    assert found == whole


@everyone
@pytest.mark.parametrize("text", ["", "she likes boats"])
def test_one_bos_in_front_of_all(family: Family, text: str) -> None:
    """Also with a text about the user, and where a plain prompt loses its beginning."""
    for limit in (None, 3) if isinstance(asked(family), str) else (None,):
        one = encoder(family, prompt_limit=limit)
        prompt = "hello" if limit else asked(family)
        encoded = encode(one, prompt, said(family, "ok"), said(family, "no"), text)
        bos = family.bos if family.bos and family.adds_bos and family.shown.startswith(family.bos) else ""
        shown = f"{bos}lo" if limit else family.shown
        assert one.tokenizer.decode(encoded.text + encoded.prompt) == bos + text + shown.removeprefix(bos)


@everyone
def test_an_eos_of_the_tokenizers_own_stays_out(family: Family) -> None:
    one = encoder(family)
    encoded = encode(one, "hi", "ok", "no")
    assert one.tokenizer.decode(encoded.prompt) == (family.bos if family.adds_bos else "") + "hi"
    assert one.tokenizer.decode(encoded.chosen) == "ok" + family.eos


@chats
def test_the_system_message_is_not_lost(family: Family) -> None:
    one = encoder(family)
    encoded = encode(one, talk("hi", system="be kind"), said(family, "ok"), said(family, "no"))
    assert one.tokenizer.decode(encoded.prompt).count("be kind") == 1
    assert bool(one.changes["system"]) == family.folds_system
    if family.folds_system:
        assert "be kind\n\nhi" in one.tokenizer.decode(encoded.prompt)


@chats
def test_an_empty_system_message_is_left_out(family: Family) -> None:
    one = encoder(family)
    empty = [{"role": "system", "content": " "}, *talk("hi")]
    encoded = encode(one, empty, said(family, "ok"), said(family, "no"))
    assert one.tokenizer.decode(encoded.prompt) == family.shown
    assert one.tokenizer.decode(encoded.chosen) == family.said


@chats
def test_a_begun_answer_is_continued(family: Family) -> None:
    one = encoder(family)
    encoded = encode(one, talk("hi", "Sure:"), said(family, " red"), said(family, " blue"))
    words = one.tokenizer.decode(encoded.prompt)
    assert words.endswith("Sure:")
    assert words.count("Sure:") == 1
    assert one.tokenizer.decode(encoded.chosen).removesuffix(family.end).rstrip() == " red"


@everyone
def test_a_response_without_room_has_no_end(family: Family) -> None:
    whole = encode(encoder(family), asked(family), said(family, "ok" * 40), said(family, "no" * 40))
    one = encoder(family, limit=len(whole.prompt) + len(whole.chosen) - 1)
    encoded = encode(one, asked(family), said(family, "ok" * 40), said(family, "no" * 40))
    assert (encoded.prompt, encoded.chosen) == (whole.prompt, whole.chosen[:-1])
    assert one.cut["responses"] == 2


@everyone
def test_the_name_of_the_end_is_not_the_end(family: Family) -> None:
    """In the words of a response, whichever token ends texts or turns: nothing is cut, and it is reported."""
    for name in {family.end, family.eos}:
        one = encoder(family)
        encoded = encode(one, asked(family), said(family, f"a {name} b"), said(family, "no"))
        assert f"a {name} b" in one.tokenizer.decode(encoded.chosen)
        assert encoded.chosen.count(one.tokenizer.convert_tokens_to_ids(name)) == (name == family.end)
        assert one.changes["specials"] == 1


# ---- generation ----


def policy(family: Family) -> Policy:
    """One that answers `ok` and the end of its turn, and talks to itself where it is not stopped."""
    tokenizer = family.tokenizer()
    prompt = encoder(family).prompt(asked(family), 100, "p")
    o, k, x = (tokenizer.convert_tokens_to_ids(letter) for letter in "okx")
    end = tokenizer.convert_tokens_to_ids(family.end)
    lm = family.model(tokenizer, {prompt[-1]: o, o: k, k: end, end: x})
    options = {"user_model": "uniform", "user_tokens": 0, "template_options": dict(family.options), "lora_r": 1}
    return assemble(Base(family.name, lm, tokenizer, "f"), TrainConfig(**options), [], {})


@everyone
@pytest.mark.parametrize("base", [True, False], ids=["base", "trained"])
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "generate"])
def test_generation_ends_where_the_turn_does(
    family: Family, base: bool, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "serves", lambda model: loop)
    model, config = policy(family), GenerateConfig(temperature=0, max_new_tokens=9, device="cpu")
    requests = plan_requests(model, [(asked(family), Reader(GENERIC, 0, ""))], baseline_of(config), config)
    ((written,),) = decoding.write(model, requests, config, base)
    assert (written.text, written.finished, written.tokens) == ("ok", True, 2)


@everyone
def test_what_ends_training_ends_generation(family: Family) -> None:
    model = policy(family)
    encoded = encode(model.encoder(), asked(family), said(family, "ok"), said(family, "no"))
    ids = decoding.turn_end(model, GenerateConfig()).ids
    wanted = {family.eos, family.end, *family.ends}
    assert encoded.chosen[-1] in ids
    assert ids == set(model.tokenizer.convert_tokens_to_ids(list(wanted)))


# ---- what no family has ----


def with_template(template: str, name: str = "chatml-on-a-base") -> Encoder:
    one = encoder(next(family for family in FAMILIES if family.name == name))
    one.tokenizer.chat_template = template
    return one


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no, thanks') }}", "no, thanks"),
        ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
        ("{{ tools[0].name }}", "has no element 0|'tools' is undefined|None"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "leaves out a message of the role"),
    ],
)
def test_a_template_that_fails_is_one_line_with_the_row(template: str, words: str) -> None:
    with pytest.raises(PrlhfError, match=rf"the conversation of 'row': .*({words})") as error:
        encode(with_template(template), talk("hi"), talk("", "ok")[1:], talk("", "no")[1:])
    assert "\n" not in str(error.value)


def test_roles_that_do_not_take_turns_are_refused_with_the_templates_words() -> None:
    one = encoder(next(family for family in FAMILIES if family.name == "mistral"))
    two = [{"role": "user", "content": "hi"}, {"role": "user", "content": "who?"}]
    with pytest.raises(PrlhfError, match="the conversation of 'row': Conversation roles must alternate"):
        encode(one, two, talk("", "ok")[1:], talk("", "no")[1:])


def test_a_thought_is_not_opened_twice() -> None:
    one = encoder(next(family for family in FAMILIES if family.name == "deepseek-r1"))
    answers = [talk("", f"<think>\n{mind}\n</think>\n\nok")[1:] for mind in ("Hm.", "Oh.")]
    encoded = encode(one, talk("hi"), *answers)
    found = one.tokenizer.decode(encoded.prompt + encoded.chosen)
    assert found.endswith("<|Assistant|><think>\nHm.\n</think>\n\nok<|end_of_sentence|>")
    assert one.changes["apart"] == 2


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|START_THINKING|>", "<thought>"])
def test_an_open_thought_does_not_swallow_the_response(opening: str) -> None:
    closing = {"[": "[/THINK]", "<|START_THINKING|>": "<|END_THINKING|>"}.get(opening, "</" + opening[1:])
    closing = "[/THINK]" if opening.startswith("[") else closing
    plain = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    one = with_template(plain + "{% if add_generation_prompt %}<|im_start|>assistant " + opening + "{% endif %}")
    encoded = encode(one, talk("hi"), talk("", "ok")[1:], talk("", f"Hm.{closing}no")[1:])
    assert one.tokenizer.decode(encoded.chosen) == f"\n{closing}\n\nok<|im_end|>"
    assert one.tokenizer.decode(encoded.rejected) == f"Hm.{closing}no<|im_end|>"  # begins within the thought
    assert (one.changes["thoughts closed"], one.changes["apart"]) == (1, 1)


def test_two_tokens_may_end_a_turn() -> None:
    """Of which the second is EOS, as Cohere's; but not those that a line break parts, as Phi's."""
    plain = "{% for m in messages %}{{ m.role }} {{ m.content }}<|im_end|>BETWEEN<|endoftext|>{% endfor %}"
    for between, end in (("", "<|im_end|><|endoftext|>"), ("\n", "<|im_end|>")):
        assert Chat(with_template(plain.replace("BETWEEN", between)).tokenizer, {}).end == end


def test_a_turn_may_end_in_words() -> None:
    """ChatML on a tokenizer to which it is only letters: EOS follows in training, and generation stops at the words."""
    family = next(family for family in FAMILIES if family.name == "no-template")
    one = with_template(CHATS[-1].template or "", family.name)
    encoded = encode(one, talk("hi"), talk("", "ok")[1:], talk("", "no")[1:])
    assert one.tokenizer.decode(encoded.chosen) == "ok<|im_end|></s>"
    end = decoding.End(frozenset({one.tokenizer.eos_token_id}), one.chat.end_words)
    request = WriteRequest("p", talk("hi"), [], GENERIC, 0)
    for rest in ("</s>", "\n<|im_start|>user"):
        ids = one.tokenizer(f"ok<|im_end|>{rest}", add_special_tokens=False).input_ids
        written = decoding.written(request, ids, one.tokenizer, end)
        assert (written.text, written.finished) == ("ok", True)
