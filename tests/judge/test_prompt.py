"""Prompts: what each protocol says, what is fenced, and what counts as a verdict."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_rows import row

from prlhf import judge
from prlhf.config import JudgeConfig
from prlhf.config.names import PROTOCOLS
from prlhf.errors import PrlhfError
from prlhf.judge.llm.answers import verdict_in
from prlhf.judge.llm.prompt import (
    UNKNOWN,
    Question,
    UserContext,
    UserContexts,
    load_template,
    question,
    reminded,
)
from prlhf.judge.verdicts import Pair

LABELS = {"K4B": "A", "W7D": "B", "H2T": "tie"}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
MATERIAL = {
    "age": "25-34 years old",
    "self_description": "A gardener.",
    "system_string": "Be brief.",
    "stated_prefs_top": ["factuality", "fluency"],
    "open_feedback": "It talked too much.",
    "choice_attributes": {"fluency": 80.0},
    "examples": [{"prompt": "Which soil?", "chosen": "Loam.", "rejected": ["Sand.", "It depends."]}],
}


def pair(a: str = "first text", b: str = "second text", prompt: object = "Say it.") -> Pair:
    return Pair("p", "anna", 1, prompt, row("p", "anna", a), row("p", "anna", b))  # type: ignore[arg-type]


def ask(
    protocol: str, user: UserContext = UNKNOWN, one: Pair | None = None, order: str = "ab", seed: int = 0
) -> Question:
    return question(load_template(protocol, None), one or pair(), user, order, seed)  # type: ignore[arg-type]


def text_of(asked: Question) -> str:
    return "\n".join(message["content"] for message in asked.messages)


def test_role_play_tells_what_the_paper_tells() -> None:
    text = text_of(ask("role-play", UserContext("ignored", "", MATERIAL), pair(prompt=TALK)))
    told = ["age: 25-34 years old", "A gardener.", "Be brief.", "factuality\nfluency", "It talked too much.",
            "you wrote: Which soil?\nyou chose: Loam.\nyou did not choose: Sand.\nyou did not choose: It depends.",
            "user: Hi\n\nassistant: Hello\n\nuser: Why?"]  # fmt: skip
    assert [part for part in told if part not in text] == []
    assert "80.0" not in text
    assert "ignored" not in text


def test_role_play_without_a_survey_has_the_text() -> None:
    assert "Twelve words of mine." in text_of(ask("role-play", UserContext(text="Twelve words of mine.")))


def test_profile_tells_the_wish_and_allows_ties() -> None:
    text = text_of(ask("profile", UserContext("", "Be unfriendly.")))
    assert "Be unfriendly." in text
    assert "call it a tie" in text
    assert "From the text." in text_of(ask("profile", UserContext("From the text.", "")))


def test_plain_knows_nobody() -> None:
    assert "Be unfriendly." not in text_of(ask("plain", UserContext("A", "Be unfriendly.", MATERIAL)))


def test_the_protocols_are_the_files_in_the_folder() -> None:
    assert {"plain", "profile", "role-play"} <= set(PROTOCOLS)
    folder = Path(judge.__file__).parent / "prompts"
    assert {f"{name}.jinja" for name in PROTOCOLS} | {"_rules.jinja"} == {path.name for path in folder.iterdir()}
    with pytest.raises(PrlhfError, match=r"protocol = '_rules' is not known"):
        JudgeConfig(protocol="_rules")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_orders_and_codes(protocol: str) -> None:
    ab, ba = ask(protocol, order="ab"), ask(protocol, order="ba")
    assert list(ab.labels.values()) == ["A", "B", "tie"]
    assert list(ba.labels.values()) == ["B", "A", "tie"]
    assert text_of(ab).index("first text") < text_of(ab).index("second text")
    assert text_of(ba).index("first text") > text_of(ba).index("second text")
    assert [message["role"] for message in ab.messages] == ["system", "user"]
    assert ab == ask(protocol, order="ab")
    assert set(ab.labels) != set(ba.labels)
    assert ask(protocol, seed=1).labels != ab.labels


@given(a=st.text(max_size=80), b=st.text(max_size=80), known=st.text(max_size=40))
def test_whatever_is_written_stands_in_fences_and_spells_no_code(a: str, b: str, known: str) -> None:
    asked = ask("profile", UserContext("", known), pair(a, b))
    system, user = (message["content"] for message in asked.messages)
    (fence,) = set(re.findall(r"\[(\w{16}) end\]", system))
    inside = re.findall(rf"\[{fence} ([^\]]*)\]\n(.*?)\n\[{fence} end\]", user, re.DOTALL)
    assert [name for name, _ in inside if name.startswith("response")] == [
        f"response {code}" for code, text in zip(asked.labels, (a, b), strict=False) if text.strip()]  # fmt: skip
    for text in (a, b, known):
        assert fence not in text
        assert not any(code in text for code in asked.labels)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"reason": "short", "verdict": "K4B"}', "A"),
        ('{"verdict": "W7D"}', "B"),
        ('```json\n{"verdict": "H2T"}\n```', "tie"),
        ("K4B", "A"),
        ("**W7D**.", "B"),
        ("It is nicer.\n\nVerdict: W7D", "B"),
        ("It is nicer.\n**Verdict:** K4B.", "A"),
        ('{"reason": "W7D says {\\"verdict\\": \\"W7D\\"}", "verdict": "K4B"}', "A"),
        (None, None),
        ("", None),
        ("A", None),
        ("tie", None),
        ("k4b", None),
        ("I choose K4B.", None),
        ("Verdict: K4B\nVerdict: W7D", None),
        ("Verdict: K4B\nOn second thought, no.", None),
        ('{"verdict": "K4B", "verdict": "W7D"}', None),
        ('{"verdict": ["K4B"]}', None),
        ('{"verdict": "A"}', None),
        ('{"answer": "K4B"}', None),
        ('["K4B"]', None),
        ('{"verdict": "K4B"} {"verdict": "W7D"}', None),
        ('Here: {"verdict": "K4B"}', None),
    ],
)
def test_what_counts_as_a_verdict(answer: str | None, verdict: str | None) -> None:
    assert verdict_in(answer, LABELS) == verdict  # type: ignore[arg-type]


@given(st.text())
def test_no_text_without_a_code_is_a_verdict(answer: str) -> None:
    if not any(code in answer for code in LABELS):
        assert verdict_in(answer, LABELS) is None  # type: ignore[arg-type]


def test_asked_again_is_another_request_with_the_same_question() -> None:
    asked = ask("plain")
    again = reminded(asked, 1)
    assert reminded(asked, 0) == asked.messages
    assert again[-1]["content"].startswith(asked.messages[-1]["content"])
    assert all(code in again[-1]["content"][len(asked.messages[-1]["content"]) :] for code in asked.labels)
    assert len({str(reminded(asked, attempt)) for attempt in range(3)}) == 3


# ---- prompts of one's own ----


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% block system %}{{ rules }}{% endblock %}{% block user %}{{ first }}|{{ second }}{% endblock %}")
    asked = question(load_template("plain", file), pair(), UNKNOWN, "ab", 0)
    assert asked.messages[1]["content"].count("|") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{% block system %}x{% endblock %}", "has no block 'user'"),
        ("{% block system %}", "cannot use the prompt"),
        (None, "cannot use the prompt"),
    ],
)
def test_a_prompt_that_is_none(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PrlhfError, match=message):
        load_template("plain", file)


@pytest.mark.parametrize("expression", ["{{ nothing }}", "{{ first.__class__.__mro__ }}"])
def test_a_prompt_that_asks_for_what_there_is_not(tmp_path: Path, expression: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% block system %}x{% endblock %}{% block user %}" + expression + "{% endblock %}")
    with pytest.raises(PrlhfError, match="the prompt cannot be filled in"):
        question(load_template("plain", file), pair(), UNKNOWN, "ab", 0)


# ---- whom the judge speaks for ----


def test_the_protocol_that_makes_most_of_the_data(shared_data: Path, tmp_path: Path) -> None:
    from prlhf.config import PrepConfig
    from prlhf.data import prepare

    assert UserContexts(None).protocol == "plain"
    for name, protocol in (("psoups", "profile"), ("prism", "role-play")):
        prepare(PrepConfig(dataset=name, source=str(shared_data / name), out=tmp_path / name))
        assert UserContexts(tmp_path / name).protocol == protocol


@pytest.mark.parametrize("start", ["", "x", "<answer>", "```json", "<think>x</think>", '{"verdict": '])
@pytest.mark.parametrize("blank", ["\n", " ", "\n "])
@pytest.mark.parametrize("end", ["", "x", "</answer>", "<|im_end|>"])
def test_a_hundred_thousand_blanks_take_no_time(start: str, blank: str, end: str) -> None:
    """Models may end this way. A regular expression that runs over blanks would take minutes for this answer."""
    began = time.process_time()
    assert verdict_in(start + blank * 100_000 + end, {"B2C": "A", "D3F": "B", "G4H": "tie"}) is None
    assert time.process_time() - began < 2
