"""`prlhf generate` as a function: users, prompts, the file, and what a killed run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.config import GenerateConfig
from prlhf.dataset import read_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate import decoding, writer
from prlhf.generate.pairs import read_prompts
from prlhf.generate.run import generate
from prlhf.model.checkpoint import load_policy
from prlhf.progress import Silent
from prlhf.responses import read_responses
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


def config(tmp_path: Path, **options: Any) -> GenerateConfig:
    values = {"out": tmp_path / "out.jsonl", "max_new_tokens": 6, "max_prompts": 3, "device": "cpu", "batch_size": 4}
    return GenerateConfig.model_validate(values | options)


def rows_of(tmp_path: Path, trained: Path, **options: Any) -> list[Any]:
    generate(trained, config(tmp_path, **options))
    return read_responses(options.get("out", tmp_path / "out.jsonl"))


def test_rows_of_a_whole_run(tmp_path: Path, trained: Path, prepared: Path) -> None:
    result = generate(trained, config(tmp_path))
    rows = read_responses(tmp_path / "out.jsonl")
    prompts = [row.prompt for row in read_prepared(prepared).eval[:3]]
    users = ["ann", "bob", "cat", "generic"]
    assert [(row.prompt, row.user_id) for row in rows] == [(p, u) for p in prompts for u in users]
    assert [row.user_index for row in rows[:4]] == [1, 2, 3, 0]
    assert {key: result[key] for key in ("responses", "new", "users")} == {"responses": 12, "new": 12, "users": 4}
    assert result["tokens"] == sum(row.response_tokens for row in rows)
    assert all(row.response_tokens == 6 or row.finish_reason == "stop" for row in rows)
    assert rows[0].prompt_tokens > rows[1].prompt_tokens  # ann has a text
    assert {key: rows[0].settings[key] for key in ("run", "seed", "temperature", "baseline")} == {
        "run": str(trained), "seed": 0, "temperature": 1.0, "baseline": "none",
    }  # fmt: skip
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_the_batch_size_changes_nothing(tmp_path: Path, trained: Path) -> None:
    for size in (1, 5):
        generate(trained, config(tmp_path, out=tmp_path / f"{size}.jsonl", batch_size=size))
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "5.jsonl").read_bytes()


def test_some_users(tmp_path: Path, trained: Path) -> None:
    rows = rows_of(tmp_path, trained, users=" cat, generic,cat ")
    assert [row.user_id for row in rows] == ["cat", "generic"] * 3


def test_a_users_response_does_not_depend_on_other_users(tmp_path: Path, trained: Path) -> None:
    everyone = rows_of(tmp_path, trained, out=tmp_path / "a.jsonl")
    alone = rows_of(tmp_path, trained, out=tmp_path / "b.jsonl", users="bob")
    assert alone == [row for row in everyone if row.user_id == "bob"]


def test_an_unseen_user_is_index_0_with_the_text(tmp_path: Path, trained: Path) -> None:
    zoe, generic = rows_of(tmp_path, trained, users="zoe,generic", max_prompts=1, temperature=0)
    assert (zoe.user_index, generic.user_index) == (0, 0)
    policy = load_policy(trained, "cpu", "fp32")
    assert zoe.prompt_tokens - generic.prompt_tokens == len(policy.tokenizer("a pilot with boats").input_ids)
    assert zoe.response != generic.response


def test_unknown_users(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(
        PrlhfError, match=r"user 'anna' is unknown to this model; did you mean 'ann'.*unknown-as-generic"
    ):
        generate(trained, config(tmp_path, users="anna"))
    assert not (tmp_path / "out.jsonl.partial").exists()
    rows = rows_of(tmp_path, trained, users="anna,generic", unknown_as_generic=True, temperature=0)
    by_user = {u: [row.response for row in rows if row.user_id == u] for u in ("anna", "generic")}
    assert by_user["anna"] == by_user["generic"]
    assert {row.user_index for row in rows} == {0}


def test_no_users(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(PrlhfError, match="users = ' , ' names no user"):
        generate(trained, config(tmp_path, users=" , "))


def test_the_base_alone_is_one_reader(tmp_path: Path, trained: Path) -> None:
    rows = rows_of(tmp_path, trained, baseline="base", temperature=0)
    assert [row.user_id for row in rows] == ["generic"] * 3
    policy = rows_of(tmp_path, trained, out=tmp_path / "p.jsonl", users="generic", temperature=0)
    assert [row.response for row in rows] != [row.response for row in policy]


def test_the_base_of_a_full_finetune_is_the_one_it_started_from(
    tmp_path: Path, make_config: MakeConfig, trained: Path
) -> None:
    train(make_config(tmp_path / "full", full_finetune=True, lr=1e-2))
    ours = rows_of(tmp_path, tmp_path / "full", out=tmp_path / "a.jsonl", baseline="base", temperature=0)
    adapters = rows_of(tmp_path, trained, out=tmp_path / "b.jsonl", baseline="base", temperature=0)
    tuned = rows_of(tmp_path, tmp_path / "full", out=tmp_path / "c.jsonl", users="generic", temperature=0)
    assert [row.response for row in ours] == [row.response for row in adapters]
    assert [row.response for row in ours] != [row.response for row in tuned]


def test_a_run_trained_without_texts_writes_without_texts(tmp_path: Path, make_config: MakeConfig) -> None:
    train(make_config(tmp_path / "r", user_text=False, max_steps=1))
    rows = rows_of(tmp_path, tmp_path / "r", users="ann,bob", max_prompts=1)
    assert rows[0].prompt_tokens == rows[1].prompt_tokens


# ---- killed runs ----


class Stop(Silent):
    """Ends the run after some batches: one `advance` at the start, one a batch."""

    def __init__(self, batches: int, error: type[BaseException]) -> None:
        self.left, self.error, self.label = batches + 1, error, ""

    def start(self, label: str, total: int) -> None:
        self.label = label

    def advance(self, steps: int = 1, **values: float) -> None:
        self.left -= self.label == "generating"
        if self.left == 0:
            raise self.error


@pytest.fixture
def whole(tmp_path: Path, trained: Path) -> bytes:
    generate(trained, config(tmp_path, out=tmp_path / "whole.jsonl"))
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [0, 25])
def test_resumed_is_uninterrupted(tmp_path: Path, trained: Path, whole: bytes, cut: int) -> None:
    with pytest.raises(ZeroDivisionError):
        generate(trained, config(tmp_path), Stop(2, ZeroDivisionError))
    partial = tmp_path / "out.jsonl.partial"
    assert not (tmp_path / "out.jsonl").exists()
    partial.write_bytes(partial.read_bytes()[: -cut or None])
    result = generate(trained, config(tmp_path))
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert result["new"] == 12 - 8 + (cut > 0)
    assert not partial.exists()


def test_killed_within_the_first_line(tmp_path: Path, trained: Path, whole: bytes) -> None:
    (tmp_path / "out.jsonl.partial").write_bytes(whole[:30])
    generate(trained, config(tmp_path))
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_ctrl_c_says_how_to_continue(tmp_path: Path, trained: Path, whole: bytes) -> None:
    with pytest.raises(Interrupted, match="stopped with 4 of 12 responses written; run it again to continue"):
        generate(trained, config(tmp_path), Stop(1, KeyboardInterrupt))
    generate(trained, config(tmp_path))
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_a_finished_file_is_left_as_it_is(
    tmp_path: Path, trained: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(writer, "write", lambda policy, requests, *_: asked.extend(requests) or iter(()))
    result = generate(trained, config(tmp_path, out=tmp_path / "whole.jsonl"))
    assert (result["responses"], result["new"], asked) == (12, 0, [])
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_more_users_join_a_finished_file(tmp_path: Path, trained: Path, whole: bytes) -> None:
    generate(trained, config(tmp_path, users="bob"))
    assert generate(trained, config(tmp_path))["new"] == 9
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_killed_while_more_users_join(tmp_path: Path, trained: Path) -> None:
    """The finished rows of bob survive: the partial file holds only what is new."""
    generate(trained, config(tmp_path, users="bob"))
    with pytest.raises(ZeroDivisionError):
        generate(trained, config(tmp_path, users="cat", batch_size=1), Stop(1, ZeroDivisionError))
    generate(trained, config(tmp_path, users="cat", batch_size=1))
    rows = read_responses(tmp_path / "out.jsonl")
    assert sorted(row.user_id for row in rows) == ["bob"] * 3 + ["cat"] * 3


@pytest.mark.parametrize("option", [{"seed": 1}, {"temperature": 0.5}, {"max_new_tokens": 7}, {"baseline": "base"}])
@pytest.mark.parametrize("state", ["whole", "killed"])
def test_other_settings_are_not_mixed_in(
    tmp_path: Path, trained: Path, whole: bytes, option: dict[str, Any], state: str
) -> None:
    path = tmp_path / ("out.jsonl" if state == "whole" else "out.jsonl.partial")
    path.write_bytes(whole)
    key, value = next(iter(option.items()))
    with pytest.raises(PrlhfError, match=rf"holds responses with {key} = .*, not {value}; choose another --out"):
        generate(trained, config(tmp_path, **option))
    assert path.read_bytes() == whole


def test_another_runs_responses_are_not_mixed_in(tmp_path: Path, trained: Path, make_config: MakeConfig) -> None:
    train(make_config(tmp_path / "r", max_steps=1))
    generate(trained, config(tmp_path))
    with pytest.raises(PrlhfError, match="holds responses with run = "):
        generate(tmp_path / "r", config(tmp_path))


@pytest.mark.parametrize("served", [True, False])
def test_a_model_that_the_loop_cannot_serve_is_reported(
    tmp_path: Path, trained: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    """One line, and the same responses."""

    class Notes(Silent):
        def note(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    monkeypatch.setattr(writer, "serves", lambda model: served)
    monkeypatch.setattr(decoding, "serves", lambda model: served)
    generate(trained, config(tmp_path), Notes())
    assert ["wait for their longest" in line for line in lines] == ([] if served else [True])
    assert (tmp_path / "out.jsonl").read_bytes() == whole


# ---- prompts ----


def test_prompt_files(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}]
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\\u2028two"}\n\n' + json.dumps({"prompt": talk}) + "\n")
    assert read_prompts(tmp_path / "a.jsonl") == ["one\u2028two", talk]
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert read_prompts(tmp_path / "a.txt") == ["one", " two "]
    pq.write_table(pa.table({"prompt": ["one", "two"], "other": [1, 2]}), tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.parquet") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ', r"a.jsonl:2: it is not JSON"),
        (
            "a.jsonl",
            b'{"prompt": "x"}\n{"text": "y"}\n',
            r":2: no prompt, column 'prompt' .*--prompt-column text",
        ),
        ("a.jsonl", b"7\n", r":1: no prompt, 'prompt' is a number, not text"),
        ("a.jsonl", b'{"prompt": ""}\n', r":1: no prompt, 'prompt' is empty"),
        ("a.jsonl", b'{"prompt": []}\n', r":1: no prompt, 'prompt' is empty"),
        ("a.jsonl", b'{"prompt": [{"role": "user"}]}\n', r":1: no prompt, column 'content' is missing"),
        ("a.jsonl", b"\xff\xfd", r"it is not UTF-8"),
        ("a.parquet", b"PAR1 not", r"cannot read .*a.parquet"),
        ("a.txt", b"\xff", r"cannot read prompts"),
        ("a.txt", b"\n\n", r"holds no prompt"),
        (".", b"", r"cannot read prompts"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, trained: Path, name: str, content: bytes, message: str) -> None:
    if name != ".":
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PrlhfError, match=message) as error:
        generate(trained, config(tmp_path, prompts=str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_missing_prompts(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(PrlhfError, match=r"no prompts at .*nowhere.jsonl; give a file, or `eval`"):
        generate(trained, config(tmp_path, prompts=str(tmp_path / "nowhere.jsonl")))


def test_own_prompts_are_written_once_each(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "mine.txt").write_text("my boss\nmy uncle\nmy boss\n")
    rows = rows_of(tmp_path, trained, prompts=str(tmp_path / "mine.txt"), users="bob")
    assert [row.prompt for row in rows] == ["my boss", "my uncle"]


def test_own_prompts_need_no_data_set(
    tmp_path: Path, trained: Path, make_config: MakeConfig, make_prepared: Any
) -> None:
    import shutil

    train(make_config(tmp_path / "r", dataset=str(make_prepared(tmp_path / "d")), max_steps=1))
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "mine.txt").write_text("my boss\n")
    assert len(rows_of(tmp_path, tmp_path / "r", prompts=str(tmp_path / "mine.txt"))) == 4
    with pytest.raises(PrlhfError, match=r"the data set of .*/r is gone from .*/d; give its new folder with --dataset"):
        generate(tmp_path / "r", config(tmp_path, out=tmp_path / "b.jsonl"))


def test_a_prompt_too_long_for_the_context(tmp_path: Path, trained: Path) -> None:
    """Context 128; the model's 2 user tokens, ann's text and 6 new tokens need room too."""
    (tmp_path / "long.txt").write_text("my boss lost rings. " * 40)
    with pytest.raises(PrlhfError, match=r"the prompt of '[0-9a-f]{16}' has \d+ tokens, and \d+ fit"):
        generate(trained, config(tmp_path, prompts=str(tmp_path / "long.txt")))


def test_the_training_budget_does_not_bind_generation(tmp_path: Path, make_config: Any) -> None:
    """A run trained on 40 tokens per row still writes after a prompt of 30, up to the model's context."""
    train(make_config(tmp_path / "r", max_steps=1, max_tokens=40, max_prompt_tokens=20))
    (tmp_path / "p.txt").write_text("my boss lost rings. " * 5)
    rows = rows_of(tmp_path, tmp_path / "r", prompts=str(tmp_path / "p.txt"), max_new_tokens=30)
    assert {row.prompt_tokens for row in rows if row.user_id == "generic"} == {20}


def test_a_conversation_for_a_run_on_plain_text(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": [{"role": "user", "content": "Why?"}]}\n')
    with pytest.raises(PrlhfError, match="is a conversation, and the run was trained on plain text"):
        generate(trained, config(tmp_path, prompts=str(tmp_path / "a.jsonl")))


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match=r"nowhere is not a checkpoint"):
        generate(tmp_path / "nowhere", config(tmp_path))
