"""`prlhf data show`: the rows that it shows are those that training reads, token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import prlhf
from prlhf.dataset import Comparison, Message, Prepared, User, prompt_id, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.model import engine
from prlhf.model.prefix_tree import SLOT
from prlhf.model.readings import Rows, padded
from prlhf.train.run import train
from prlhf.view.agreement import agreement
from prlhf.view.pieces import SIDES, _lost
from prlhf.view.run import EQUAL, view
from prlhf.view.texts import decoded_one_by_one
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]
Read = tuple[int, tuple[int, ...], tuple[bool, ...]]  # the user, the ids (SLOT: a vector), which the loss counts

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def all_rows(folder: Path, config: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = view(folder, config, None, 1000, True)["rows"]
    return found


def shown(rows: list[dict[str, Any]], sides: tuple[str, ...] = SIDES) -> set[Read]:
    """The readings that the pieces of `rows` make up."""
    found = set()
    for row in rows:
        for side in sides:
            pieces = [one for one in row["pieces"] if one["of"] in ("both", side) and not one["cut"]]
            ids = tuple(id_ for one in pieces for id_ in one["ids"])
            found.add((row["user_index"], ids, tuple(one["loss"] for one in pieces for _ in one["ids"])))
    return found


def trained(rows: Rows) -> Iterator[Read]:
    """The readings of padded rows, as the model gets them: it scores what stands from the column `start` on."""
    for number in range(len(rows.ids)):
        columns = [column for column in range(rows.ids.shape[1]) if rows.mask[number, column]]
        ids = tuple(SLOT if rows.slots[number, c] else int(rows.ids[number, c]) for c in columns)
        yield int(rows.user_indices[number]), ids, tuple(column >= rows.start for column in columns)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "rm", "max_prompt_tokens": 6},
        {"objective": "sft"},
        {"user_in": "adapter", "user_text": False},
        {"max_tokens": 40, "max_prompt_tokens": 12},
    ],
    ids=lambda changes: ",".join(map(str, changes)) or "defaults",
)
def test_tokens_and_loss_mask_are_those_of_training(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Every row that an epoch reads as its own user is shown, and nothing else is."""
    read: set[Read] = set()

    def record(readings: Any, user_tokens: int, pad: int) -> Rows:
        rows = padded(readings, user_tokens, pad)
        if user_tokens == slots:  # the reference reads without vectors of users
            read.update(trained(rows))
        return rows

    monkeypatch.setattr(engine, "padded", record)
    config = make_config(tmp_path / "run", prefix_tree=False, **changes)
    slots = 0 if config.objective == "sft" else config.slots
    results = train(config)
    rows = all_rows(prepared, config)
    assert len(rows) == 12 + 8
    rows = [row for row in rows if not row["left_out"]]
    assert len(rows) == 20 - results["left_out"]["train"].get("equal", 0)
    found = shown(rows, SIDES if config.objective != "sft" else SIDES[:1])
    assert found <= read
    assert found == {one for one in read if one[0] > 0 or one in found}
    assert any(row["cut"] for row in rows) == ("max_prompt_tokens" in changes)


@pytest.fixture
def chat(tiny_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base with a chat template, and two conversations with it, of which one is long."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(tmp_path / "chat")

    def row(number: int, prompt: list[Message]) -> Comparison:
        answers = [[{"role": "assistant", "content": f"my boss sold {what}."}] for what in ("boats", "cars")]
        return Comparison(f"r{number}", prompt, *answers, "ann", 1, "", prompt_id(prompt), True)

    asked = {"role": "user", "content": "who sold boats?"}
    before = [{"role": "user", "content": "my uncle lost cars. " * 6}, {"role": "assistant", "content": "the nurse"}]
    write_prepared(
        tmp_path / "data",
        Prepared([row(0, [asked]), row(1, [*before, asked])], [], [User("ann", 1, "", "", 2, 0, True)], {}),
    )
    return tmp_path / "chat", tmp_path / "data"


def test_a_conversation_is_shown_as_the_template_writes_it(chat: tuple[Path, Path]) -> None:
    base, data = chat
    found = prlhf.show_data(data, model=str(base), max_prompt_tokens=40, user_tokens=2)
    short, long = found.rows
    texts = {(one["of"], one["part"], one["cut"]): one["text"] for one in short["pieces"]}
    assert texts["both", "prompt", False].startswith("<user>who sold boats?|<assistant>")
    assert "boats" in texts["chosen", "response", False] + texts["both", "response", False]
    (cut,) = [one for one in long["pieces"] if one["cut"]]
    assert cut["part"] == "prompt"
    assert not cut["loss"]
    assert "my uncle lost cars" in cut["text"]
    assert long["cut"] == cut["tokens"] > 0 == short["cut"]
    assert "ids" not in cut
    assert long["left_out"] is short["left_out"] is None


def test_the_whole_text_is_what_was_kept_and_what_was_cut(prepared: Path, make_config: MakeConfig) -> None:
    plain = all_rows(prepared, make_config(Path("run")))
    cut = all_rows(prepared, make_config(Path("run"), max_prompt_tokens=4, max_tokens=30))
    assert any(one["cut"] and one["part"] == "response" for row in cut for one in row["pieces"])
    for whole, short in zip(plain, cut, strict=True):
        for side in SIDES:
            texts = [
                "".join(one["text"] for one in row["pieces"] if one["of"] in ("both", side)) for row in (whole, short)
            ]
            assert texts[0] == texts[1]


def test_what_does_not_fit_or_teaches_nothing_is_said(prepared: Path, tmp_path: Path, tiny_base: Path) -> None:
    data = read_prepared(prepared)
    same = Comparison(**{**vars(data.train[0]), "rejected": data.train[0].chosen})
    write_prepared(tmp_path / "data", Prepared([same, *data.train[1:]], data.eval, data.users, {}))
    equal, fits = prlhf.show_data(tmp_path / "data", model=str(tiny_base), rows=2).rows
    assert (equal["left_out"], fits["left_out"]) == (EQUAL, None)
    assert {one["of"] for one in equal["pieces"]} == {"both"}
    (long,) = prlhf.show_data(prepared, model=str(tiny_base), rows=1, max_tokens=16).rows
    assert "and 2 fit" in long["left_out"] or "fit (context 16" in long["left_out"]
    assert long["cut"] == 0


@pytest.mark.parametrize(
    ("kept", "whole", "lost"),
    [
        ([1, 2, 3], [1, 2, 3], (0, [])),
        ([1, 5, 6], [1, 2, 3, 4, 5, 6], (1, [2, 3, 4])),  # BOS stays, the beginning goes
        ([5, 6], [2, 3, 5, 6], (0, [2, 3])),
        ([7, 7], [7, 7, 7], (2, [7])),
        ([1, 9, 6], [1, 2, 3, 4, 6], (1, [2, 3, 4])),  # a template that writes a shorter history in other words
    ],
)
def test_lost_tokens(kept: list[int], whole: list[int], lost: tuple[int, list[int]]) -> None:
    assert _lost(kept, whole) == lost


def test_texts_of_tokens_add_up_to_the_text(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids = tokenizer("my boss sold 🎈 für 日本", add_special_tokens=False).input_ids
    texts = decoded_one_by_one(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "🎈" in texts
    assert "".join(texts) == tokenizer.decode(ids)
    assert decoded_one_by_one(tokenizer, [SLOT, SLOT]) == ["", ""]


# ---- agreement ----


def chose(user: str, chosen: str, rejected: str, prompt: str = "p") -> Comparison:
    return Comparison("id", prompt, chosen, rejected, user, 1, "", prompt_id(prompt), True)


def test_agreement() -> None:
    """Two of three agree on one pair; on another one two disagree, and one user changed their mind."""
    rows = [
        *(chose("ann", "a", "b"), chose("bob", "b", "a"), chose("cat", "a", "b")),
        *(chose("ann", "a", "b", "q"), chose("bob", "b", "a", "q")),
        *(chose("cat", "a", "b", "q"), chose("cat", "b", "a", "q")),
        chose("ann", "a", "c"),
    ]
    found = agreement(rows)
    assert (found["pairs"], found["changed"]) == (2, 1)
    assert found["same"] == pytest.approx(2 / 8)
    assert found["by_user"] == {
        "ann": {"others": 3, "same": 1 / 3}, "bob": {"others": 3, "same": 0}, "cat": {"others": 2, "same": 1 / 2},
    }  # fmt: skip
    assert found["between"] == [
        {"users": ["ann", "bob"], "pairs": 2, "same": 0},
        {"users": ["ann", "cat"], "pairs": 1, "same": 1},
        {"users": ["bob", "cat"], "pairs": 1, "same": 0},
    ]
    assert agreement(rows[:1]) == {"pairs": 0, "same": None, "by_user": {}, "between": [], "changed": 0}


# ---- the command and the page ----


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", "show", *words])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_shows_users_agreement_and_rows(prepared: Path, tiny_base: Path) -> None:
    text = said(str(prepared), "--model", str(tiny_base), "--user", "cat", "--rows", "2")
    assert "12 training and 8 held-out comparisons" in text
    assert re.search(r"│ cat +│ +4 │ +2 │", text)
    assert "no pair was judged by two users" in text
    assert "train-2: training, user cat (index 3)" in text
    assert text.count("user cat (index 3)") == 2
    assert "shared: prompt (read)" in text
    assert "chosen: response (loss)" in text
    assert "│my│ boss" not in text
    tokens = said(str(prepared), "--model", str(tiny_base), "--rows", "1", "--tokens", "--set", "user_text=false")
    assert re.search(r"my│ ?\w+", tokens)
    assert "text about the user" not in tokens


def test_a_summary_has_ids_where_tokens_are_asked_for(prepared: Path, tiny_base: Path) -> None:
    words = [str(prepared), "--model", str(tiny_base), "--rows", "1", "--json"]
    (row,) = json.loads(said(*words, "--tokens").splitlines()[-1])["rows"]
    assert {len(one["ids"]) == len(one["texts"]) == one["tokens"] for one in row["pieces"]} == {True}
    (row,) = json.loads(said(*words).splitlines()[-1])["rows"]
    assert all("ids" not in one for one in row["pieces"])


def test_the_page_stands_alone_and_replaces_only_pages(prepared: Path, tiny_base: Path, tmp_path: Path) -> None:
    page, words = tmp_path / "mine.html", [str(prepared), "--model", str(tiny_base), "--html"]
    said(*words, str(page), "--set", "max_prompt_tokens=6")
    text = page.read_text(encoding="utf-8")
    assert "http" not in re.sub(r"<title>.*?</title>", "", text)
    assert 'class="loss">' in text
    assert 'class="cut">' in text
    assert "&lt;|end|&gt;" in text
    said(*words, str(page))
    assert "cut to fit" in page.read_text(encoding="utf-8") != text
    other = tmp_path / "other.html"
    other.write_text("<p>notes")
    assert "exists and is not a page of prlhf data show; choose another --html" in said(*words, str(other), code=2)
    assert other.read_text() == "<p>notes"


def test_bad_input_is_one_line(prepared: Path, tiny_base: Path) -> None:
    assert "has no user 'an'; did you mean 'ann'?" in said(str(prepared), "--user", "an", code=2)
    assert "nowhere is not a prepared data set" in said("nowhere", code=2)
    with pytest.raises(PrlhfError, match="unknown key 'max_token'"):
        prlhf.show_data(prepared, max_token=5)
