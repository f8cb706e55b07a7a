import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.dataset import prompt_id
from prlhf.errors import PrlhfError
from prlhf.responses import Response, read_responses, to_line, words

ROW: dict[str, Any] = {
    "prompt_id": "p1",
    "user_id": "anna",
    "user_index": 1,
    "prompt": "Say hello.",
    "response": "Hello\u2028 there\n",
    "prompt_tokens": 4,
    "response_tokens": 3,
    "finish_reason": "stop",
    "settings": {"temperature": 0.7, "seed": 1},
}


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    rows = [Response(**ROW), Response(**ROW | {"user_id": "généric", "prompt": messages, "finish_reason": "length"})]
    path = tmp_path / "responses.jsonl"
    path.write_bytes("".join(map(to_line, rows)).encode())
    assert read_responses(path) == rows


def test_words_are_separated_by_any_whitespace() -> None:
    assert [words(text) for text in ("", "  \n", "one", " my sister\tsold\nthe boat. ")] == [0, 0, 1, 5]


COUNTS = {
    "English": ("My sister's boat - sold, i.e. gone.", 7),
    "German": ("Die Donaudampfschifffahrt fährt nicht.", 4),
    "Chinese": ("我昨天回家了。今天天气很好!", 12),
    "Chinese with a name": ("我用 Python 写代码。", 6),
    "Chinese without blanks around a name": ("我用Python写代码", 6),
    "Japanese": ("昨日、コーヒーを飲みました。", 12),
    "Thai": ("ฉันกลับบ้าน", 8),
    "Khmer": ("ខ្ញុំទៅផ្ទះ", 5),
    "Korean": ("나는 집에 갔다.", 3),
    "Vietnamese": ("Tôi về nhà.", 3),
    "Arabic": ("ذهبت إلى البيت أمس.", 4),
    "Hebrew": ("שלום עולם", 2),
    "emoji": ("🙂🙂 👨‍👩‍👧", 2),
    "Chinese and emoji": ("好🙂", 2),
    "code": ("x = foo(bar, 3)", 4),
    "punctuation": ("。 — !", 3),
    "empty": ("", 0),
}


@pytest.mark.parametrize(("text", "count"), COUNTS.values(), ids=COUNTS)
def test_words_of_scripts_with_and_without_blanks(text: str, count: int) -> None:
    assert words(text) == count


@settings(deadline=None)
@given(st.text(st.characters(categories=["Lu", "Ll", "Nd", "P", "S", "Z", "Cc"])))
def test_words_are_what_blanks_separate_where_there_are_blanks(text: str) -> None:
    assert words(text) == len(text.split())


def test_a_killed_run_gives_its_whole_rows_and_where_they_end(tmp_path: Path) -> None:
    path, whole = tmp_path / "responses.jsonl", lines(ROW, ROW | {"user_id": "ben"})
    path.write_bytes(whole + b'{"prompt_id": "p1", "user_')
    rows, offset = read_responses(path, partial=True)
    assert ([row.user_id for row in rows], offset) == (["anna", "ben"], len(whole))
    with pytest.raises(PrlhfError, match=r"responses\.jsonl:3 is not JSON, or cut off"):
        read_responses(path)


def test_a_run_killed_in_its_first_row_has_none(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    for content in (b"", b'{"prompt_id"'):
        path.write_bytes(content)
        assert read_responses(path, partial=True) == ([], 0)


def test_a_last_row_without_newline_is_whole_to_a_reader_and_unfinished_to_a_writer(tmp_path: Path) -> None:
    path, first = tmp_path / "responses.jsonl", lines(ROW)
    path.write_bytes(first + lines(ROW | {"user_id": "ben"}).rstrip(b"\n"))
    assert len(read_responses(path)) == 2
    assert read_responses(path, partial=True)[1] == len(first)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in ROW.items() if k != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (lines(ROW) + b"\n" + lines(ROW | {"user_id": "ben"}), ":2 is not JSON"),
        (lines(ROW) + b"not json\n", ":2 is not JSON"),
        (lines(ROW) + b'\xff"\n', ":2 is not JSON"),
        (b"[1, 2]\n", ":1 is not a JSON object"),
        (lines(ROW, without("response")), ":2 has no 'response'"),
        (lines(ROW, without("user_id")), ":2 has no 'user_id'"),
        (lines(ROW | {"response": 3}), ":1: response = 3 is refused: it should be a valid string"),
        (lines(ROW | {"user_index": "1"}), ":1: user_index = '1' is refused"),
        (lines(ROW | {"user_index": True}), ":1: user_index = True is refused"),
        (lines(ROW | {"user_index": -1}), ":1: user_index = -1 is refused"),
        (
            lines(ROW | {"finish_reason": "eos"}),
            ":1: finish_reason = 'eos' is refused: it should be 'stop' or 'length'",
        ),
        (lines(ROW | {"settings": None}), ":1: settings = None is refused"),
        (lines(ROW | {"prompt": [{"role": 1}]}), ":1: prompt = "),
        (lines(ROW, ROW | {"user_id": "ben"}, ROW), ":3 repeats line 1: prompt 'p1', user 'anna'"),
    ],
)
def test_bad_files_are_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_bytes(content)
    with pytest.raises(PrlhfError) as error:
        read_responses(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.hint


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match=r"no responses at .*nowhere"):
        read_responses(tmp_path / "nowhere")
    with pytest.raises(PrlhfError, match="cannot read"):
        read_responses(tmp_path)


BY_HAND = {
    "a.csv": b'prompt,user_id,response\n"Say hello.",anna,"Hi, you"\n',
    "marked.csv": b'\xef\xbb\xbfprompt;user_id;response\r\n"Say hello.";anna;"Hi, you"\r\n',
    "a.tsv": b"prompt\tuser_id\tresponse\tuser_index\nSay hello.\tanna\tHi, you\t0\n",
    "a.json": b'[{"prompt": "Say hello.", "user_id": "anna", "response": "Hi, you"}]',
    "a.jsonl": b'{"prompt": "Say hello.", "user_id": "anna", "response": "Hi, you"}\n',
    "marked.jsonl": b'\xef\xbb\xbf{"prompt": "Say hello.", "user_id": "anna", "response": "Hi, you"}\n',
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_written_by_hand_need_three_columns(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BY_HAND[name])
    found = Response(prompt_id("Say hello."), "anna", 0, "Say hello.", "Hi, you", 0, 0, "stop", {})
    assert read_responses(tmp_path / name) == [found]


def test_a_table_keeps_what_generate_wrote(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    row = Response(**ROW | {"prompt": messages, "response": "", "reward": 0.5})
    cells = asdict(row) | {"prompt": json.dumps(messages), "settings": json.dumps(row.settings)}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    assert read_responses(tmp_path / "a.csv") == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,response\na,b\n", r"a.csv:2 has no 'user_id'"),
        (b"prompt,user_id,response,user_index\na,b,c,x\n", r"a.csv:2: invalid literal"),
        (b"prompt,user_id,response\na,b\n", r"a.csv:2: it has 2 cells"),
        (b"prompt,user_id,response\na,b,c\na,b,d\n", r"a.csv:3 repeats line 2"),
        (b"", r"a.csv is empty"),
    ],
)
def test_bad_tables_are_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(PrlhfError, match=message):
        read_responses(tmp_path / "a.csv")


# ---- folders of shards with an invalid manifest ----


@pytest.mark.parametrize(
    "changes",
    [{"shards": "2"}, {"shards": [1]}, {"shards": -1}, {"shards": 2**62}, {"format": "csv"}, {"settings": []}],
)
def test_a_manifest_of_the_wrong_kind_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    about = {"shards": 1, "format": "jsonl", "settings": {}} | changes
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(PrlhfError, match=r"manifest.json is damaged"):
        read_responses(tmp_path)


def test_a_manifest_of_many_shards_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"shards": 2000000000, "format": "jsonl", "settings": {}}')
    with pytest.raises(PrlhfError, match="is not finished: 0 of 2000000000 shards are there"):
        read_responses(tmp_path)


def test_a_count_too_large_for_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROW | {"prompt_tokens": 2**31}))
    with pytest.raises(PrlhfError, match=r"a.jsonl:1: prompt_tokens = 2147483648 is refused"):
        read_responses(tmp_path / "a.jsonl")
