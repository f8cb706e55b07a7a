"""Custom data as other programs write them: ids, columns, messages, repeated prompts, splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


ASKED, YES, NO = said("user", "Hi"), said("assistant", "Hello"), said("assistant", "Go away")
SYSTEM = said("system", "Be brief.")
TALK: dict[str, Any] = {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]}


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    """prep(path, **options): prepares and reads back the data set with its manifest."""

    def run(dataset: Path, **options: Any) -> Prepared:
        given = {"eval_fraction": 0.0} | options  # None: not given
        given = {key: value for key, value in given.items() if value is not None}
        prepare(PrepConfig(dataset=str(dataset), out=tmp_path / "out", **given))
        return read_prepared(tmp_path / "out")

    return run


# ---- ids ----


@pytest.mark.parametrize(("given", "user"), [(12.0, "12"), (12, "12"), ("12.0", "12.0"), (-3.0, "-3"), (0, "0")])
def test_whole_numbers_are_ids(given: Any, user: str, write_lines: Any, row: Any, prep: Any) -> None:
    assert prep(write_lines("raw.jsonl", row(user_id=given))).users[0].id == user


def test_numbers_beside_a_missing_one_are_the_same_users(write_lines: Any, row: Any, prep: Any, tmp_path: Path) -> None:
    """pandas turns integers into floats then, in parquet and in CSV."""
    ids = pa.array([12.0, 13.0, None, 12.0])
    texts = pa.table({"prompt": list("abcd"), "chosen": ["x"] * 4, "rejected": ["y"] * 4})
    pq.write_table(texts.append_column("user_id", ids), tmp_path / "raw.parquet")
    csv = write_lines("raw.csv", "prompt,chosen,rejected,user_id", "a,x,y,12.0", "b,x,y,13.0", "c,x,y,", "d,x,y,12.0")
    nan = write_lines("nan.csv", "prompt,chosen,rejected,user_id", "a,x,y,12", "b,x,y,13", "c,x,y,nan", "d,x,y,12")
    for source, message in ((tmp_path / "raw.parquet", "row 3: 'user_id' is null"), (csv, ":4: 'user_id' is empty")):
        with pytest.raises(PrlhfError, match=message):
            prep(source)
    with pytest.raises(PrlhfError, match="'user_id' is missing: the cell holds 'nan'"):
        prep(nan)
    for source in (tmp_path / "raw.parquet", csv, nan):
        assert [r.user_id for r in prep(source, bad_rows="skip").train] == ["12", "13", "12"]


@pytest.mark.parametrize("given", [float("nan"), float("inf"), 0.5, 2.0**60, True, None, [], {}])
def test_values_that_are_not_ids(given: Any, write_lines: Any, row: Any, prep: Any) -> None:
    with pytest.raises(PrlhfError, match=r"raw.jsonl:1: 'user_id' is "):
        prep(write_lines("raw.jsonl", row(user_id=given)))


def test_ids_that_look_alike_are_reported(write_lines: Any, row: Any, prep: Any) -> None:
    ids = ["ann", " ann", "Bob", "bob", "Jose\u0301", "Jos\u00e9", "Generic", "all"]
    data = prep(write_lines("raw.jsonl", *(row(user_id=user) for user in ids)))
    assert [user.id for user in data.users] == ids
    alike, unnamed = data.manifest["warnings"][:2]
    assert alike.startswith("4 pairs of user ids differ only in blanks, case or Unicode form")
    assert "'ann' and ' ann'" in alike
    assert unnamed.startswith("2 users cannot be named in `generate --users`")


def test_an_id_that_several_users_share_names_an_item(write_lines: Any, row: Any, prep: Any) -> None:
    rows = [row(id=item, user_id=user, prompt=item) for item in ("q1", "q2", "q3") for user in ("ann", "bob", "cat")]
    data = prep(write_lines("raw.jsonl", *rows, row(id="own", user_id="ann", prompt="own")))
    assert [r.id for r in data.train][:4] == ["q1/ann", "q1/bob", "q1/cat", "q2/ann"]
    assert data.train[-1].id == "own"
    assert len({r.id for r in data.train}) == 10
    assert "9 rows: several users share the id" in data.manifest["warnings"][0]


def test_an_id_column_can_be_left_out(write_lines: Any, row: Any, prep: Any) -> None:
    source = write_lines("raw.jsonl", row(id="q", prompt="a"), row(id="q", prompt="b"), row(id="q", prompt="c"))
    with pytest.raises(PrlhfError, match=r"first of 2 malformed rows\); .*--column id=none"):
        prep(source)
    assert [r.id for r in prep(source, columns={"id": "none"}).train] == ["all-1", "all-2", "all-3"]
    with pytest.raises(PrlhfError, match="every comparison needs 'user_id'"):
        prep(source, columns={"user_id": "none"})


# ---- columns ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("user_id", "annotator"), ("user_id", "Worker ID"), ("user_id", "rater_id"), ("user_id", "userid"),
        ("prompt", "question"), ("chosen", "preferred"), ("rejected", "rejected_response"), ("user_id", "user"),
    ],
)  # fmt: skip
def test_a_hint_names_the_most_likely_column(ours: str, theirs: str, write_lines: Any, row: Any, prep: Any) -> None:
    changed = row()
    changed[theirs] = changed.pop(ours)
    source = write_lines("raw.jsonl", changed)
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert f"--column {ours}={theirs}" in error.value.hint
    assert len(prep(source, columns={ours: theirs}).train) == 1


def test_a_hint_without_any_idea_leaves_the_name_open(write_lines: Any, row: Any, prep: Any) -> None:
    with pytest.raises(PrlhfError, match=r"--column user_id=NAME"):
        prep(write_lines("raw.jsonl", row(user_id=..., zzz=1)))


# ---- messages ----


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "empty system": {"prompt": [said("system", ""), ASKED]},
    "null system": {"prompt": [said("system", None), ASKED]},
    "other keys": {"prompt": [said("user", "Hi", name="x", tool_calls=None)]},
    "parts": {"prompt": [said("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}])]},
    "ShareGPT": {"prompt": [{"from": "human", "value": "Hi"}], "chosen": [{"from": "gpt", "value": "Hello"}]},
    "roles": {
        "prompt": [said("Human", "Hi")],
        "chosen": [said("bot", "Hello")],
        "rejected": [said("model", "Go away")],
    },
    "one message, no list": {"chosen": YES, "rejected": NO},
    "a text prompt": {"prompt": "Hi"},
    "text responses": {"chosen": "Hello", "rejected": "Go away"},
    "as JSON": {key: json.dumps(value) for key, value in TALK.items()},
    "as Python": {key: repr(value) for key, value in TALK.items()},
    "repeated": {"chosen": [ASKED, YES], "rejected": [ASKED, NO]},
    "repeated beside text": {"prompt": "Hi", "chosen": [ASKED, YES], "rejected": [ASKED, NO]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_comparison(shape: str, write_lines: Any, row: Any, prep: Any) -> None:
    found = prep(write_lines("raw.jsonl", row(**TALK | SHAPES[shape]))).train[0]
    assert (found.prompt, found.chosen, found.rejected) == ([ASKED], [YES], [NO])


def test_messages_in_a_csv(write_lines: Any, prep: Any) -> None:
    cells = ['"' + json.dumps(value).replace('"', '""') + '"' for value in TALK.values()]
    data = prep(write_lines("raw.csv", "prompt,chosen,rejected,user_id", ",".join([*cells, "ann"])))
    assert data.train[0].prompt == [ASKED]
    assert data.manifest["format"] == "conversational"


def test_a_system_message_within_the_responses_is_the_prompts(write_lines: Any, row: Any, prep: Any) -> None:
    source = write_lines("raw.jsonl", row(prompt="Hi", chosen=[SYSTEM, ASKED, YES], rejected=[SYSTEM, ASKED, NO]))
    assert prep(source).train[0].prompt == [SYSTEM, ASKED]


def test_turns_that_both_responses_share_are_the_prompts(write_lines: Any, row: Any, prep: Any) -> None:
    shared = [said("assistant", "Which one?"), said("user", "Green.")]
    data = prep(write_lines("raw.jsonl", row(prompt=[ASKED], chosen=[*shared, YES], rejected=[*shared, NO])))
    found = data.train[0]
    assert (found.prompt, found.chosen, found.rejected) == ([ASKED, *shared], [YES], [NO])
    assert data.manifest["changed"] == {"shared turns moved into the prompt": 1}
    assert "1 rows: shared turns moved into the prompt" in data.manifest["warnings"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tool role": ({"prompt": [said("tool", "x")]}, "'prompt' has a turn with the role 'tool'"),
    "picture": (
        {"prompt": [said("user", [{"type": "image_url", "image_url": "x"}])]},
        "a part of type 'image_url'",
    ),
    "tool call": ({"chosen": [said("assistant", None, tool_calls=[{}])]}, "a turn that calls a tool and says nothing"),
    "user answers": ({"rejected": [said("user", "Go away")]}, "'rejected' begins with a turn of the user"),
    "parted turns": ({"chosen": [YES, ASKED, YES], "rejected": [NO, ASKED, YES]}, "'chosen' holds 3 turns"),
    "one is longer": ({"chosen": [YES, ASKED, NO]}, "'chosen' holds 3 turns"),
    "one repeats": ({"chosen": [ASKED, YES]}, "'chosen' begins with the prompt, and 'rejected' does not"),
    "nothing else": ({"chosen": [ASKED, YES], "rejected": [ASKED]}, "'rejected' holds nothing but the prompt"),
    "another question": (
        {"chosen": [said("user", "Oh"), YES], "rejected": [said("user", "Oh"), NO]},
        "begin with a turn of the user that is not in the prompt",
    ),
    "pandas' own text": ({"prompt": "[{'role': 'user', 'content': 'Hi'}\n {'role': 'x'}]"}, "text that is not JSON"),
    "only an empty system message": ({"prompt": [said("system", " ")]}, "'prompt' is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_a_guess_is_refused(case: str, write_lines: Any, row: Any, prep: Any) -> None:
    change, message = REFUSED[case]
    source = write_lines("raw.jsonl", row(**TALK), row(**TALK | change, user_id="bo"))
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message.startswith(f"{source}:2: ")
    assert message in error.value.message
    data = prep(source, bad_rows="skip")
    assert data.manifest["users_lost"] == 1
    assert "all rows of 1 user were dropped: 'bo'" in data.manifest["warnings"]


# ---- text that repeats the prompt ----


def test_text_that_repeats_the_prompt(write_lines: Any, row: Any, prep: Any) -> None:
    asked = ["Q: Why? A:", "Q: When? A: "]
    rows = [row(prompt=p, chosen=f"{p.rstrip()} Because.", rejected=f"{p.rstrip()} No idea.") for p in asked]
    data = prep(write_lines("raw.jsonl", *rows))
    assert [(r.chosen.strip(), r.rejected.strip()) for r in data.train] == [("Because.", "No idea.")] * 2
    assert data.manifest["changed"] == {"prompt taken off both responses": 2}


def test_a_coincidence_is_not_a_repeated_prompt(write_lines: Any, row: Any, prep: Any) -> None:
    data = prep(write_lines("raw.jsonl", row(prompt="Hello", chosen="Hello!", rejected="Hello there"), row(), row()))
    assert data.train[0].chosen == "Hello!"
    assert "1 rows have responses that both begin with the prompt: kept as they are" in data.manifest["warnings"]


# ---- splits ----


def test_splits_are_chosen_by_name(write_lines: Any, row: Any, prep: Any) -> None:
    raw = write_lines("raw/train_prefs-00000-of-00001.jsonl", row(prompt="a"), row(prompt="b")).parent
    write_lines("raw/test_prefs-00000-of-00001.jsonl", row(prompt="c"))
    with pytest.raises(PrlhfError, match=r"has the splits test_prefs, train_prefs and no 'train'; choose with --split"):
        prep(raw)
    assert len(prep(raw, split="train_prefs").train) == 2
    with pytest.raises(PrlhfError, match=r"eval_fraction = 0.0 does not apply: .* has a held-out split"):
        prep(raw, split="train_prefs,test_prefs")
    data = prep(raw, split="train_prefs,test_prefs", eval_fraction=None)
    assert (len(data.train), len(data.eval)) == (2, 1)
    for asked in ("train_pref", "train_prefs,train_prefs", "train_prefs,test_prefs,x", ""):
        with pytest.raises(PrlhfError, match="split"):
            prep(raw, split=asked)


def test_a_file_has_neither_splits_nor_configurations(write_lines: Any, row: Any, prep: Any) -> None:
    for key in ("split", "config", "revision"):
        with pytest.raises(PrlhfError, match=rf"--{key} x: .* is a file; drop --{key}"):
            prep(write_lines("raw.jsonl", row()), **{key: "x"})


def test_home_is_filled_in(write_lines: Any, row: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("raw.jsonl", row())
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("~/raw.jsonl", "$HOME/raw.jsonl"):
        assert prepare(PrepConfig(dataset=written, out=tmp_path / "out"))["kept"]["train"] == 1
    with pytest.raises(PrlhfError, match=r"no data at .*/gone\.csv; check the path"):
        prepare(PrepConfig(dataset="~/gone.csv"))
    with pytest.raises(PrlhfError, match=r"is an address, not a path"):
        prepare(PrepConfig(dataset="https://huggingface.co/datasets/org/name"))
