"""Training on conversations that are longer than their budget: what is dropped is said, and stands in the results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf.dataset import Comparison, Message, Prepared, User, prompt_id, write_prepared
from prlhf.progress import Silent
from prlhf.train.run import train

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}. {% endfor %}"


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def chat_base(tiny_base: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def said(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def talks(split: str, answered: list[int]) -> list[Comparison]:
    """A comparison at the end of each conversation, after so many answered questions."""
    rows = []
    for i, turns in enumerate(answered):
        prompt = [*(said("user", "my boss") + said("assistant", "sold boats")) * turns, *said("user", f"{i} cars")]
        chosen, rejected = said("assistant", "my sister"), said("assistant", "the nurse")
        rows.append(Comparison(f"{split}-{i}", prompt, chosen, rejected, "ann", 1, "", prompt_id(prompt), True))
    return rows


@pytest.mark.parametrize("budget", ["max_prompt_tokens", "the context"])
def test_dropped_turns_are_counted(
    budget: str, chat_base: Path, tmp_path: Path, make_config: Callable[..., Any]
) -> None:
    data, notes = tmp_path / "data", Notes()
    ann = User("ann", 1, "", "", 4, 1, True)
    write_prepared(data, Prepared(talks("train", [0, 1, 30, 40]), talks("eval", [50]), [ann], {"dataset": "talks"}))
    changes = {"max_prompt_tokens": 40} if budget == "max_prompt_tokens" else {}
    train(make_config(tmp_path / "run", dataset=str(data), model=str(chat_base), max_steps=1, **changes), False, notes)
    assert json.loads((tmp_path / "run/results.json").read_text())["cut"]["histories"] == 3
    assert "3 histories were cut to fit the token budget" in notes.lines
