"""`prepare`: names, the manifest, and that nothing is written after an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.config import PrepConfig
from prlhf.data import custom, find_loader, prepare
from prlhf.dataset import Comparison, Prepared, User, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.extensions import DATA_SETS
from prlhf.progress import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[list[Any]] = []

    def start(self, label: str, total: int) -> None:
        self.bars.append([label, total, 0, "open"])

    def advance(self, steps: int = 1, **values: float) -> None:
        self.bars[-1][2] += steps

    def finish(self) -> None:
        self.bars[-1][3] = "closed"

    def note(self, line: str) -> None:
        self.lines.append(line)


def fingerprint(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


KNOWN = "known: demo, demo-crowd, demo-profiles, personalllm, personalrewardbench, prism, psoups, tldr, ultrafeedback"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tldrr", "unknown data set 'tldrr'", "did you mean 'tldr'?"),
        ("dmo", "unknown data set 'dmo'", "did you mean 'demo'?"),
        ("zzz", "unknown data set 'zzz'", KNOWN),
        ("", "unknown data set ''", KNOWN),
        ("missing.jsonl", "no data at missing.jsonl", "check the path"),
        ("data/missing.parquet", "no data at data/missing.parquet", "check the path"),
        ("/nowhere/at/all", "no data at /nowhere/at/all", "check the path"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str, hint: str) -> None:
    with pytest.raises(PrlhfError) as error:
        prepare(PrepConfig(dataset=name))
    assert message in error.value.message
    assert hint in error.value.hint


def test_hub_ids_and_paths_go_to_the_custom_adapter(tmp_path: Path) -> None:
    assert find_loader("org/name.v2") is custom.load
    assert find_loader(str(tmp_path)) is custom.load
    assert all(find_loader(name) is data_set for name, data_set in DATA_SETS.items())


@pytest.mark.parametrize(
    ("dataset", "message", "hint"),
    [
        ("tldr", "data set openai/summarize_from_feedback is not in the cache", "run: prlhf prep tldr --source FOLDER"),
        ("some/thing", "data set some/thing is not in the cache, and HF_HUB_OFFLINE forbids", "run: prlhf prep PATH"),
    ],
)
def test_an_offline_hub_names_the_command_to_run(dataset: str, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(PrlhfError) as error:
        prepare(PrepConfig(dataset=dataset, out=tmp_path / "out"))
    assert error.value.message.startswith(message)
    assert error.value.hint.startswith(f"unset it, or {hint}")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PrlhfError, match=r"cannot reach the hub .*no route.*HF_HUB_OFFLINE=1"):
        prepare(PrepConfig(dataset="tldr", out=tmp_path / "out"))


def test_manifest_and_files(write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw.jsonl", *(row(prompt=f"{i}?", user_id=f"u{i % 3}") for i in range(20)), row(chosen=""))
    out = tmp_path / "out"
    progress = Notes()
    manifest = prepare(PrepConfig(dataset=str(source), out=out, bad_rows="skip", seed=4), progress)
    assert manifest["dataset"] == manifest["source"] == str(source)
    assert manifest["seed"] == 4
    assert manifest["options"] == {"bad_rows": "skip", "columns": {}, "eval_fraction": 0.1}
    assert manifest["read"] == {"all": 21}
    assert manifest["dropped"] == {"malformed": 1, "repeat": 0, "equal pair": 0}
    assert manifest["filters"][0] == {"filter": "malformed", "all": {"before": 21, "after": 20}}
    assert manifest["malformed"] == [f"{source}:21: 'chosen' is empty"]
    assert manifest["kept"] == {"train": 18, "eval": 2}
    assert manifest["users"] == {"seen": 3, "unseen": 0}
    assert manifest["warnings"] == ["all rows of 1 user were dropped: 'ann'"]
    assert manifest["users_lost"] == 1
    assert progress.bars == [["reading all", 21, 21, "closed"]]
    prepared = read_prepared(out)
    assert prepared.manifest == manifest
    assert (len(prepared.train), len(prepared.eval), len(prepared.users)) == (18, 2, 3)
    for name in ("train", "eval"):
        assert tuple(pq.read_table(out / f"{name}.parquet").column_names) == tuple(
            field.name for field in fields(Comparison)
        )


def test_what_is_written_loads_with_datasets(write_lines: Any, row: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    said = [{"role": "user", "content": "Why? 🦊"}]
    answers = {"chosen": [{"role": "assistant", "content": "é"}], "rejected": [{"role": "assistant", "content": "n"}]}
    source = write_lines("raw.jsonl", row(prompt=said, **answers), row(prompt=said, **answers, user_id="bo"))
    out = tmp_path / "out"
    manifest = prepare(PrepConfig(dataset=str(source), out=out))
    assert manifest["format"] == "conversational"
    files = {"train": str(out / "train.parquet"), "users": str(out / "users.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files["train"], cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[0]["prompt"] == said
    assert loaded["user_id"][:] == ["ann", "bo"]
    assert loaded["user_index"][:] == [1, 2]


def test_failure_leaves_an_earlier_result_untouched(write_lines: Any, row: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(PrepConfig(dataset=str(write_lines("good.jsonl", row(), row(user_id="bo"))), out=out))
    before = fingerprint(out)
    bad = write_lines("bad.jsonl", row(), row(user_id=None))
    empty = write_lines("empty.jsonl")
    for source in (bad, empty):
        with pytest.raises(PrlhfError):
            prepare(PrepConfig(dataset=str(source), out=out))
        assert fingerprint(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "empty.jsonl", "good.jsonl", "out"]


def test_an_output_folder_of_someone_elses_is_left_alone(write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw.jsonl", row())
    mine = write_lines("out/thesis.txt", "years of work")
    with pytest.raises(PrlhfError, match=r"exists and is not a prepared data set: it holds thesis\.txt"):
        prepare(PrepConfig(dataset=str(source), out=mine.parent))
    assert mine.read_text() == "years of work\n"


@pytest.mark.parametrize("out", ["raw", "."])
def test_the_source_is_never_replaced(out: str, write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw/train.jsonl", row())
    with pytest.raises(PrlhfError, match="which would be replaced; choose another --out"):
        prepare(PrepConfig(dataset=str(source.parent), out=tmp_path / out))
    assert source.exists()


def test_one_user_is_allowed_and_warned_about(write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw.jsonl", row())
    progress = Notes()
    manifest = prepare(PrepConfig(dataset=str(source), out=tmp_path / "out"), progress)
    assert manifest["warnings"] == [
        "one user: personalization adds nothing to plain DPO",
        "no held-out comparisons: a model cannot be judged on them",
    ]
    assert progress.lines == [f"warning: {line}" for line in manifest["warnings"]]
    assert manifest["kept"] == {"train": 1, "eval": 0}


def test_nothing_left_says_why(write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw.jsonl", row(chosen=""), row(chosen="a", rejected="a"))
    with pytest.raises(
        PrlhfError, match=r"no comparison is left in .*: 2 read, 1 malformed, 1 equal pair; .*:1: 'chosen' is empty"
    ):
        prepare(PrepConfig(dataset=str(source), out=tmp_path / "out", bad_rows="skip"))
    assert not (tmp_path / "out").exists()


def test_the_seed_alone_decides(write_lines: Any, row: Any, tmp_path: Path) -> None:
    source = write_lines("raw.jsonl", *(row(prompt=f"{i}?") for i in range(50)))
    hashes = [
        prepare(PrepConfig(dataset=str(source), out=tmp_path / f"out{i}", seed=seed))["content_hash"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert fingerprint(tmp_path / "out0") == fingerprint(tmp_path / "out1")


# ---- damaged prepared data ----


def change(path: Path, name: str, values: Any) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, values(table)), path)


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("manifest.json", lambda path: path.write_text("[]"), "manifest.json is damaged"),
        (
            "manifest.json",
            lambda path: path.write_text("[" * 5000),
            "manifest.json is damaged: it is nested too deeply",
        ),
        ("manifest.json", lambda path: path.write_bytes(b"\xff"), "manifest.json is damaged"),
        ("prompts.jsonl", lambda path: path.write_text('{"prompt": [1]}\n'), "prompts.jsonl is damaged"),
        (
            "prompts.jsonl",
            lambda path: path.write_text('{"prompt": [{"role": "user"}]}\n'),
            "prompts.jsonl is damaged",
        ),
        ("prompts.jsonl", lambda path: path.symlink_to("nowhere"), "prompts.jsonl is damaged"),
        (
            "judging.jsonl",
            lambda path: path.write_text('{"prompt": "p", "user_id": 1}\n'),
            "judging.jsonl is damaged",
        ),
        (
            "judging.jsonl",
            lambda path: path.write_text('{"prompt": "p", "user_id": "ann", "material": []}\n'),
            "judging.jsonl is damaged",
        ),
        (
            "choices.jsonl",
            lambda path: path.write_text('{"id": "1", "prompt": "p", "chosen": "c", "user_id": "zoe"}\n'),
            "choices.jsonl is damaged: rejected: field required",
        ),
        (
            "choices.jsonl",
            lambda path: path.write_text(
                '{"id": "1", "prompt": "p", "chosen": "c", "rejected": "r", "user_id": "zoe", "seen": true}\n'
            ),
            "choices.jsonl is damaged: seen: extra inputs are not permitted",
        ),
        (
            "train.parquet",
            lambda path: pq.write_table(pq.read_table(path).append_column("id", pa.array(["x"] * 12)), path),
            "has 2 columns 'id'",
        ),
        (
            "train.parquet",
            lambda path: change(path, "prompt", lambda table: pa.array([None] * table.num_rows, pa.string())),
            "has an empty cell in the column 'prompt'",
        ),
        (
            "eval.parquet",
            lambda path: change(path, "user_index", lambda table: pa.array([9] * table.num_rows)),
            "user_index = 9 of the row 'eval-12', and there are 3 users",
        ),
        (
            "eval.parquet",
            lambda path: change(path, "user_index", lambda table: pa.array([-1] * table.num_rows)),
            "user_index = -1 of the row 'eval-12', and there are 3 users",
        ),
        (
            "users.parquet",
            lambda path: change(path, "index", lambda table: pa.array([1, 1, 3, 0])),
            "the seen users are not numbered from 1",
        ),
        (
            "users.parquet",
            lambda path: change(path, "seen", lambda table: pa.array([True, True, True, True])),
            "the seen users are not numbered from 1",
        ),
    ],
)
def test_damaged_data_is_one_line(
    name: str, damage: Callable[[Path], Any], why: str, tmp_path: Path, make_prepared: Callable[[Path], Path]
) -> None:
    folder = make_prepared(tmp_path / "data")
    damage(folder / name)
    with pytest.raises(PrlhfError, match=why) as caught:
        read_prepared(folder)
    assert caught.value.hint == "run `prlhf prep` again"


def test_a_name_that_is_too_long_is_not_a_data_set() -> None:
    with pytest.raises(PrlhfError, match="is not a prepared data set"):
        read_prepared(Path("x" * 3000))


def test_rows_with_half_characters_are_dropped_and_the_data_reads_back(tmp_path: Path) -> None:
    """The manifest quotes the fault of a row."""
    row = {"user_id": "ann", "prompt": "Why?", "chosen": "Because.", "rejected": "No idea."}
    lines = [json.dumps(one) for one in (row, {"\ud800": 1}, row | {"chosen": "\ud800"})]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    prepare(PrepConfig(dataset=str(tmp_path / "mine.jsonl"), out=tmp_path / "out", bad_rows="skip", eval_fraction=0))
    data = read_prepared(tmp_path / "out")
    assert len(data.train) == 1
    assert len(data.manifest["malformed"]) == 2


def test_a_message_without_content_is_one_line(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    row = Comparison("1", messages, messages, messages, "ann", 1, "", "p", True)
    write_prepared(tmp_path / "data", Prepared([row], [], [User("ann", 1, "", "", 1, 0, True)], {}))
    half = [[{"role": "user", "content": None}]]
    change(tmp_path / "data/train.parquet", "chosen", lambda table: pa.array(half, table.schema.field("chosen").type))
    with pytest.raises(PrlhfError, match="has an empty cell in the column 'chosen'"):
        read_prepared(tmp_path / "data")
