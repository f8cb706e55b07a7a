"""Requests of a conversation that is longer than the model's context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Message, Text
from prlhf.errors import PrlhfError
from prlhf.generate.baselines import baseline_of
from prlhf.generate.pairs import Pair
from prlhf.generate.readers import Reader
from prlhf.generate.requests import plan_requests
from prlhf.model.checkpoint import Policy, load_policy
from prlhf.progress import Silent

RUN = baseline_of(GenerateConfig())
GENERIC_READER, ANN = Reader(GENERIC, 0, ""), Reader("ann", 1, "she likes long tables")


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def talk(turns: int) -> list[Message]:
    """As many questions, each but the last one answered."""
    pairs = [{"role": role, "content": "my boss sold boats"} for _ in range(turns) for role in ("user", "assistant")]
    return pairs[:-1]


def pairs(*prompts: Text) -> list[Pair]:
    """Every prompt for a reader with a text and for one without."""
    return [(prompt, reader) for prompt in prompts for reader in (GENERIC_READER, ANN)]


@pytest.fixture
def policy(trained: Path) -> Policy:
    loaded = load_policy(trained, "cpu", "fp32")
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}. {% endfor %}"
    return replace(loaded, conversational=None)  # as of a run that does not say what it was trained on


def test_old_turns_are_cut_and_reported(policy: Policy) -> None:
    config, notes = GenerateConfig(max_new_tokens=6), Notes()
    short, long = requests = plan_requests(policy, pairs(talk(2), talk(40)), RUN, config, notes)[::2]
    assert notes.lines == ["2 histories were cut to fit the token budget"]  # one for each reader
    assert [request.prompt for request in requests] == [talk(2), talk(40)]  # the row still says what was asked
    assert len(short.ids) < len(long.ids) <= policy.base.context - policy.config.user_tokens - 6
    written = policy.tokenizer.decode(long.ids)
    assert written.startswith("user: my boss")
    assert written.count("user") == written.count("assistant") + 1 < 40


def test_nothing_is_reported_if_nothing_is_cut(policy: Policy) -> None:
    notes = Notes()
    plan_requests(policy, pairs(talk(2), "my boss"), RUN, GenerateConfig(max_new_tokens=6), notes)
    assert notes.lines == []


def test_what_a_reader_sees_does_not_depend_on_the_others(policy: Policy) -> None:
    """ann's text takes room from ann's history and nobody else's."""
    config, talkative = GenerateConfig(max_new_tokens=6), Reader("ann", 1, "she likes long tables " * 4)
    generic, ann = plan_requests(policy, [(talk(40), GENERIC_READER), (talk(40), talkative)], RUN, config)
    assert [generic] == plan_requests(policy, [(talk(40), GENERIC_READER)], RUN, config)
    assert [ann] == plan_requests(policy, [(talk(40), talkative)], RUN, config)
    text, history = policy.encoder().text(talkative.text), policy.tokenizer.decode(generic.ids)
    assert history.count("user") > policy.tokenizer.decode(ann.ids[len(text) :]).count("user")


def test_room_is_kept_for_the_response(policy: Policy) -> None:
    with pytest.raises(PrlhfError, match=r"the user's last message in the prompt of .* 0 fit .*--max-new-tokens"):
        plan_requests(policy, pairs(talk(3)), RUN, GenerateConfig(max_new_tokens=policy.base.context), Notes())
