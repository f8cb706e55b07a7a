"""Custom data: all faults of rows, formats, files, splits and names of columns."""

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

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
MESSAGES = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go away"}]}


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    """prep(path, **options): prepares and reads back the data set with its manifest."""

    def run(dataset: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset=str(dataset), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


BAD = {
    "no prompt": ({"prompt": ...}, "column 'prompt' is missing"),
    "no chosen": ({"chosen": ...}, "column 'chosen' is missing"),
    "misspelt": ({"user_id": ..., "userid": "ann"}, "column 'user_id' is missing (did you mean 'userid'?)"),
    "null prompt": ({"prompt": None}, "'prompt' is null, not text"),
    "number": ({"chosen": 3}, "'chosen' is a number, not text"),
    "boolean text": ({"rejected": True}, "'rejected' is true or false, not text"),
    "mapping": ({"rejected": {"a": 1}}, "'rejected' is a mapping, not text"),
    "empty prompt": ({"prompt": " \n"}, "'prompt' is empty"),
    "empty chosen": ({"chosen": ""}, "'chosen' is empty"),
    "empty list": ({"prompt": []}, "'prompt' is empty"),
    "empty user": ({"user_id": " "}, "'user_id' is empty"),
    "null user": ({"user_id": None}, "'user_id' is null, not text"),
    "boolean user": ({"user_id": True}, "'user_id' is true or false, not text"),
    "NaN user": ({"user_id": float("nan")}, "'user_id' is NaN, not text"),
    "float user": ({"user_id": 1.5}, "'user_id' is 1.5, not text or a whole number"),
    "reserved user": ({"user_id": "generic"}, "reserved for the user of index 0"),
    "NaN user text": ({"user_text": float("nan")}, "'user_text' is NaN, not text"),
    "half a surrogate pair": ({"chosen": "\ud83d"}, "'chosen' holds half a surrogate pair"),
    "mixed": ({"chosen": [ASSISTANT]}, "plain text and messages are mixed: 'prompt' is text, 'chosen' is a list"),
    "other format": (MESSAGES, "the row is in messages, but the first row is in text"),
    "message without role": (MESSAGES | {"prompt": [{"content": "Hi"}]}, "column 'role' is missing"),
    "empty message": (MESSAGES | {"prompt": [{"role": "user", "content": ""}]}, "'prompt.content' is empty"),
    "message is text": (MESSAGES | {"prompt": ["Hi"]}, "a message of 'prompt' is text, not a mapping"),
    "list": ([1, 2], "the row is a list, not a mapping"),
    "bad JSON": ("{'a': 1}", "it is not JSON (Expecting property name enclosed in double quotes, column 2)"),
    "cut off": ('{"prompt": "Wh', "it is not JSON (Unterminated string starting at, column 12)"),
    "bad UTF-8": (b'{"prompt": "\xff"}', "it is not UTF-8"),
    "huge number": ('{"prompt": 1' + "0" * 5000 + "}", "it is not JSON ("),
    "deep nesting": ("[" * 100_000, "it is not JSON ("),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_or_dropped(
    change: Any, message: str, write_lines: Any, row: Any, prep: Any, tmp_path: Path
) -> None:
    bad = row(**change) if isinstance(change, dict) else change
    source = write_lines("raw.jsonl", row(), "", bad, row(prompt="And?", user_id="bo"))
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message.startswith(f"{source}:3: ")  # the blank line counts as a line, but not as a row
    assert message in error.value.message
    assert error.value.hint.endswith("drop such rows with --skip-bad")
    assert not (tmp_path / "out").exists()

    data = prep(source, bad_rows="skip", eval_fraction=0)
    assert data.manifest["dropped"]["malformed"] == 1
    assert data.manifest["malformed"][0].startswith(f"{source}:3: ")
    assert [r.id for r in data.train] == ["all-1", "all-3"]


def test_ids_repeat_or_clash(write_lines: Any, row: Any, prep: Any) -> None:
    source = write_lines("raw.jsonl", row(id="a"), row(id="a"), row(id="a", chosen="Other."), row(id=7))
    with pytest.raises(PrlhfError, match=r":3: id 'a' was used above for another comparison"):
        prep(source)
    data = prep(source, bad_rows="skip")
    assert [r.id for r in data.train] == ["a", "7"]
    assert data.manifest["dropped"] == {"malformed": 1, "repeat": 1, "equal pair": 0}


def test_a_missing_column_tells_how_to_name_it(write_lines: Any, row: Any, prep: Any) -> None:
    with pytest.raises(PrlhfError) as error:
        prep(write_lines("raw.jsonl", row(user_id=..., annotator="ann")))
    assert "name the file's column with --column user_id=annotator" in error.value.hint
    assert "(did you mean 'annotator'?)" in error.value.message


def test_columns_are_renamed(write_lines: Any, row: Any, prep: Any) -> None:
    source = write_lines("raw.jsonl", row(user_id=..., annotator="ann", bio="likes tea"))
    data = prep(source, columns={"user_id": "annotator", "user_text": "bio"})
    assert (data.train[0].user_id, data.train[0].user_text) == ("ann", "likes tea")
    with pytest.raises(PrlhfError, match=r"column 'bios' is missing \(did you mean 'bio'\?\)"):
        prep(source, columns={"user_id": "annotator", "user_text": "bios"})
    with pytest.raises(PrlhfError, match=r"unknown column 'user'.*did you mean 'user_id'"):
        prep(source, columns={"user": "annotator"})


IMPLICIT = {
    "text": {"prompt": ..., "chosen": "Human: hi Assistant: hello", "rejected": "Human: hi Assistant: no"},
    "messages": {"prompt": ..., "chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "x"}]},
}


@pytest.mark.parametrize("change", IMPLICIT.values(), ids=IMPLICIT)
def test_implicit_prompts_are_refused(change: Any, write_lines: Any, row: Any, prep: Any) -> None:
    source = write_lines("raw.jsonl", row(**change))
    why = "column 'prompt' is missing, and 'chosen' and 'rejected' have the same start: an implicit prompt"
    message = f"{source}:1: {why}"
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message == message
    assert "trl.extract_prompt" in error.value.hint
    with pytest.raises(PrlhfError) as error:
        prep(source, bad_rows="skip")
    assert error.value.message == f"no comparison is left in {source}: 1 read, 1 malformed; the first: {message}"


def test_conversations(write_lines: Any, row: Any, prep: Any) -> None:
    named = MESSAGES | {"prompt": [USER | {"name": "x"}]}  # other keys than role and content are dropped
    data = prep(write_lines("raw.jsonl", row(**named), row(**MESSAGES)), bad_rows="strict")
    assert [r.prompt for r in data.train] == [[USER], [USER]]
    assert data.train[0].chosen == [ASSISTANT]
    assert data.manifest["format"] == "conversational"


def test_text_survives_unchanged(write_lines: Any, row: Any, prep: Any) -> None:
    odd = " \u2028 naïve\r\n🦊\x00 עברית "
    huge = 10**30
    source = write_lines("raw.jsonl", b"\xef\xbb\xbf" + json.dumps(row(prompt=odd, user_id=huge)).encode())
    data = prep(source)
    assert data.train[0].prompt == odd
    assert data.users[0].id == str(huge)


def test_user_texts(write_lines: Any, row: Any, prep: Any) -> None:
    about = [None, "tea", "coffee", "tea", ...]
    source = write_lines("raw.jsonl", *(row(user_text=t) for t in about), row(user_id="bo", user_text="milk"))
    data = prep(source)
    assert [r.user_text for r in data.train] == ["", "tea", "coffee", "tea", "", "milk"]
    assert [(u.id, u.text) for u in data.users] == [("ann", "tea"), ("bo", "milk")]
    assert data.manifest["user_text_conflicts"] == 1


@pytest.mark.parametrize("name", ["eval", "validation", "test"])
def test_a_folder_with_splits_keeps_them(name: str, write_lines: Any, row: Any, prep: Any) -> None:
    train = write_lines("raw/train.jsonl", row(user_id="bo"), row())
    write_lines(f"raw/{name}.json", json.dumps([row(user_id="new", prompt="x"), row()]))
    data = prep(train.parent)
    assert [(r.user_id, r.user_index, r.seen) for r in data.eval] == [("new", 0, False), ("ann", 2, True)]
    assert [(u.id, u.user_index, u.seen) for u in data.users] == [("bo", 1, True), ("ann", 2, True), ("new", 0, False)]
    assert data.manifest["users"] == {"seen": 2, "unseen": 1}
    assert data.manifest["warnings"] == ["1 held-out prompts are also in training: their accuracy is optimistic"]
    assert "eval_fraction" not in data.manifest["options"]


def test_a_folder_of_files_is_one_data_set(write_lines: Any, row: Any, prep: Any) -> None:
    write_lines("raw/b.jsonl", row(prompt="b"))
    first = write_lines("raw/a.jsonl", row(prompt="a"))
    write_lines("raw/notes.txt", "not data")
    data = prep(first.parent, eval_fraction=0)
    assert [r.prompt for r in data.train] == ["a", "b"]


def test_train_alone_is_split_by_prompt(write_lines: Any, row: Any, prep: Any) -> None:
    rows = [row(prompt=f"{i // 2}?") for i in range(40)]
    data = prep(write_lines("raw/train.jsonl", *rows).parent, eval_fraction=0.25)
    assert (len(data.train), len(data.eval)) == (30, 10)


def test_json_lists_and_parquet_read_as_jsonl_does(write_lines: Any, row: Any, prep: Any, tmp_path: Path) -> None:
    rows = [row(prompt=f"{i}?", user_id=i) for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    lines = write_lines("raw.jsonl", *rows)
    listed = write_lines("list.json", json.dumps(rows, indent=1))
    disguised = write_lines("lines.json", *rows)
    sources = [lines, listed, disguised, tmp_path / "raw.parquet"]
    assert len({prep(source).manifest["content_hash"] for source in sources}) == 1


def test_rows_without_lines_are_named_too(write_lines: Any, row: Any, prep: Any, tmp_path: Path) -> None:
    rows = [row(), row(chosen="")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    with pytest.raises(PrlhfError, match=r"raw\.parquet:row 2: 'chosen' is empty"):
        prep(tmp_path / "raw.parquet")
    with pytest.raises(PrlhfError, match=r"raw\.json:item 2: 'chosen' is empty"):
        prep(write_lines("raw.json", json.dumps(rows)))


UNREADABLE = {
    "table.xlsx": (b"PK", "is not in a known format"),
    "broken.parquet": (b"PAR1 and then nothing", "cannot read"),
    "broken.json": (b"[1, 2", "it is not JSON"),
    "empty/readme.md": (b"", "is not in a known format"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_cannot_be_read(name: str, write_lines: Any, prep: Any) -> None:
    content, message = UNREADABLE[name]
    source = write_lines(name, content)
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert str(source) in error.value.message
    assert message in error.value.message


def test_folders_that_cannot_be_read(write_lines: Any, row: Any, prep: Any, tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match="holds no data file"):
        prep(write_lines("empty/readme.md", "").parent)
    twice = write_lines("twice/train.jsonl", row())
    write_lines("twice/train.json", "[]")
    with pytest.raises(PrlhfError, match=r"holds 'train' in several formats: train\.json, train\.jsonl"):
        prep(twice.parent)
    with pytest.raises(PrlhfError, match=r"--source .*gone\.jsonl does not exist"):
        prep(twice, source=str(tmp_path / "gone.jsonl"))
