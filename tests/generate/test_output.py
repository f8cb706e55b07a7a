"""One file or a folder of shards, JSONL or parquet: the same rows, resumed by row or by block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.config import GenerateConfig
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate import run as generating
from prlhf.generate.output import even_blocks, form_of
from prlhf.generate.run import generate
from prlhf.generate.writer import Writer
from prlhf.progress import Silent
from prlhf.recipes import resolve
from prlhf.responses import Response, prompt_type, read_responses, to_line, write_rows

ROW = Response(
    "p1", "ann", 1, "Say hello.", "Hi\u2028 there\n", 4, 3, "stop", {"seed": 1, "top_p": 0.5, "reward": None}
)
TALK = [{"role": "user", "content": "Why?"}]


def config(tmp_path: Path, **options: Any) -> GenerateConfig:
    values = {"out": tmp_path / "out", "max_new_tokens": 6, "max_prompts": 3, "device": "cpu", "block": 5}
    return resolve(GenerateConfig, values, options)


@pytest.fixture
def rows(tmp_path: Path, trained: Path) -> list[Response]:
    """What one process writes into one JSONL file: 12 rows."""
    generate(trained, config(tmp_path, out=tmp_path / "whole.jsonl"))
    return read_responses(tmp_path / "whole.jsonl")


class Stop(Silent):
    """Ends the run at the `calls`-th step of the bar of what is written; the first is its beginning."""

    def __init__(self, calls: int) -> None:
        self.left, self.label = calls, ""

    def start(self, label: str, total: int) -> None:
        self.label = label

    def advance(self, steps: int = 1, **values: float) -> None:
        self.left -= self.label == "generating"
        if self.left == 0:
            raise KeyboardInterrupt


# ---- formats ----


@pytest.mark.parametrize(
    ("out", "shards", "form"),
    [
        ("a.jsonl", None, ("jsonl", False)),
        ("a.json", None, ("jsonl", False)),
        ("a.parquet", None, ("parquet", False)),
        ("a", None, ("parquet", True)),
        ("a/", None, ("parquet", True)),
        ("a", "jsonl", ("jsonl", True)),
        ("v1.5", "parquet", ("parquet", True)),
    ],
)
def test_the_name_decides_the_format(out: str, shards: Any, form: Any) -> None:
    assert form_of(GenerateConfig(out=Path(out), shards=shards)) == form


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("prompt", ["Say hello.", [*TALK, {"role": "assistant", "content": ""}]])
def test_a_file_returns_what_was_written(tmp_path: Path, form: Any, prompt: Any) -> None:
    rows = [replace(ROW, prompt=prompt), replace(ROW, prompt=prompt, user_id="généric", user_index=0, reward=-0.1)]
    write_rows(tmp_path / f"a.{form}", rows, form)
    assert read_responses(tmp_path / f"a.{form}") == rows


def test_a_parquet_file_has_a_column_per_field(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [ROW], "parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(ROW.__dataclass_fields__)
    assert [str(table.schema.field(name).type) for name in ("prompt", "user_index", "reward")] == [
        "string", "int32", "double",
    ]  # fmt: skip
    assert json.loads(table["settings"][0].as_py()) == ROW.settings


@pytest.mark.parametrize(
    ("prompts", "why"),
    [(["a", TALK], "some are text"), ([[TALK[0] | {"name": "x"}]], "more than role and content")],
)
def test_prompts_that_do_not_fit_a_column(prompts: list[Any], why: str) -> None:
    with pytest.raises(PrlhfError, match=rf"do not fit a parquet column: .*{why}.*; write JSONL"):
        prompt_type(prompts)


def test_they_are_refused_before_anything_is_written(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": [TALK[0] | {"name": "x"}]}) + "\n")
    plan = generating.plan_requests

    def with_template(policy: Any, *args: Any) -> Any:  # as of a run of 0.1, which does not say what it was trained on
        policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        return plan(replace(policy, conversational=None), *args)

    monkeypatch.setattr(generating, "plan_requests", with_template)
    with pytest.raises(PrlhfError, match="more than role and content"):
        generate(trained, config(tmp_path, prompts=str(tmp_path / "p.jsonl"), out=tmp_path / "a.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PAR1 not", "cannot read"), (b"", "cannot read")],
)
def test_a_damaged_parquet_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(PrlhfError, match=message):
        read_responses(tmp_path / "a.parquet")


def test_a_parquet_file_of_something_else(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(PrlhfError, match=r"a\.parquet:1 has no 'user_id'"):
        read_responses(tmp_path / "a.parquet")


# ---- one file ----


def test_a_parquet_file_holds_the_same_rows(tmp_path: Path, trained: Path, rows: list[Response]) -> None:
    said = generate(trained, config(tmp_path, out=tmp_path / "a.parquet"))
    assert read_responses(tmp_path / "a.parquet") == rows
    assert (said["blocks"], said["shards"], said["workers"]) == (1, 0, 0)
    again = generate(trained, config(tmp_path, out=tmp_path / "a.parquet"))
    assert (again["new"], again["blocks"]) == (0, 0)


def test_a_killed_parquet_file_is_continued(tmp_path: Path, trained: Path, rows: list[Response]) -> None:
    with pytest.raises(Interrupted, match="with 4 of 12 responses"):
        generate(trained, config(tmp_path, out=tmp_path / "a.parquet", batch_size=4), Stop(2))
    assert not (tmp_path / "a.parquet").exists()
    assert generate(trained, config(tmp_path, out=tmp_path / "a.parquet"))["new"] == 8
    assert read_responses(tmp_path / "a.parquet") == rows


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 300))
def test_blocks_are_even(count: int, workers: int, most: int) -> None:
    """None is larger than allowed; and no more rounds are taken than that asks for."""
    size = even_blocks(count, workers, most)
    blocks = -(-count // size)
    assert 1 <= size <= most
    assert -(-blocks // workers) <= -(-count // (workers * most))


# ---- shards ----


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_shards_hold_the_same_rows_in_the_same_order(
    tmp_path: Path, trained: Path, rows: list[Response], form: Any
) -> None:
    said = generate(trained, config(tmp_path, shards=form))
    names = [f"part-0000{i}.{form}" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["manifest.json", "prlhf.json", *names])
    assert read_responses(tmp_path / "out") == rows
    sizes = [len(read_responses(tmp_path / "out" / name)) for name in names]
    assert (sizes, said["blocks"], said["shards"], said["new"]) == ([5, 5, 2], 3, 3, 12)
    if form == "jsonl":
        whole = b"".join((tmp_path / "out" / name).read_bytes() for name in names)
        assert whole == (tmp_path / "whole.jsonl").read_bytes() == "".join(map(to_line, rows)).encode()


def test_a_killed_folder_is_continued_with_the_missing_shards(
    tmp_path: Path, trained: Path, rows: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted, match="stopped with 5 of 12 responses written; run it again to continue"):
        generate(trained, config(tmp_path, batch_size=1), Stop(8))  # in the second block
    with pytest.raises(PrlhfError, match="is not finished: 1 of 3 shards are there; run `prlhf generate` again"):
        read_responses(tmp_path / "out")
    first = tmp_path / "out/part-00000.parquet"
    written, asked = first.stat().st_mtime_ns, []
    write = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, requests: asked.append(len(requests)) or write(self, requests))
    assert generate(trained, config(tmp_path))["new"] == 7
    assert (asked, first.stat().st_mtime_ns) == ([5, 2], written)
    assert read_responses(tmp_path / "out") == rows
    assert generate(trained, config(tmp_path))["new"] == 0
    assert asked == [5, 2]


def test_a_lost_shard_is_written_again(tmp_path: Path, trained: Path, rows: list[Response]) -> None:
    generate(trained, config(tmp_path))
    (tmp_path / "out/part-00001.parquet").unlink()
    assert generate(trained, config(tmp_path))["blocks"] == 1
    assert read_responses(tmp_path / "out") == rows


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 1}, "holds responses with seed = 0, not 1"),
        ({"users": "ann"}, "begun with other users or prompts"),
        ({"users": "cat,ann,bob,generic"}, "begun with other users or prompts"),
        ({"block": 4}, "begun with other --block"),
        ({"shards": "jsonl"}, "begun with other --shards"),
    ],
)
def test_shards_of_another_plan_are_not_mixed_in(
    tmp_path: Path, trained: Path, option: dict[str, Any], message: str
) -> None:
    generate(trained, config(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(PrlhfError, match=message):
        generate(trained, config(tmp_path, **option))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(PrlhfError, match=r"exists and is not a folder of responses: it holds mine\.txt; choose"):
        generate(trained, config(tmp_path))
    (tmp_path / "f.jsonl").mkdir()
    with pytest.raises(PrlhfError, match=r"f\.jsonl is a folder"):
        generate(trained, config(tmp_path, out=tmp_path / "f.jsonl"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PrlhfError, match=r"file is a file, and --shards is for a folder"):
        generate(trained, config(tmp_path, out=tmp_path / "file"))


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": 1, "format": "parquet"}'])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PrlhfError, match=r"manifest\.json is damaged"):
        read_responses(tmp_path)


def test_a_row_that_two_shards_hold(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": 2, "format": "jsonl", "settings": {}}))
    for name in ("part-00000.jsonl", "part-00001.jsonl"):
        write_rows(tmp_path / name, [ROW], "jsonl")
    with pytest.raises(PrlhfError, match=r"part-00001\.jsonl:1 repeats .*part-00000\.jsonl:1: prompt 'p1'"):
        read_responses(tmp_path)


@pytest.mark.parametrize("out", ["chosen.parquet", "chosen", "chosen.jsonl"])
def test_chosen_responses_in_every_form(tmp_path: Path, prepared: Path, out: str) -> None:
    options = {"baseline": "chosen", "prompts": "own", "dataset": str(prepared), "out": tmp_path / out}
    said = generate(None, config(tmp_path, **options))
    assert said["responses"] == said["new"] == len(read_responses(tmp_path / out)) == 8
    assert generate(None, config(tmp_path, **options))["new"] == 0
