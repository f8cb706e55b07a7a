import json
from pathlib import Path
from typing import Any

import pytest

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


def test_a_killed_run_gives_its_whole_rows_and_where_they_end(tmp_path: Path) -> None:
    path, whole = tmp_path / "responses.jsonl", lines(ROW, ROW | {"user_id": "ben"})
    path.write_bytes(whole + b'{"prompt_id": "p1", "user_')
    rows, offset = read_responses(path, partial=True)
    assert ([row.user_id for row in rows], offset) == (["anna", "ben"], len(whole))
    with pytest.raises(PrlhfError, match=r"responses\.jsonl:3 is no JSON, or cut off"):
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
        (lines(ROW) + b"\n" + lines(ROW | {"user_id": "ben"}), ":2 is no JSON"),
        (lines(ROW) + b"not json\n", ":2 is no JSON"),
        (lines(ROW) + b'\xff"\n', ":2 is no JSON"),
        (b"[1, 2]\n", ":1 is no JSON object"),
        (lines(ROW, without("response")), ":2 has no 'response'"),
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
