"""PersonalRewardBench: users by file, context and tested pairs by `split`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from few_shot_raw import chosen, rewardbench, rewardbench_rows, write_parquet

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(source: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset="personalrewardbench", source=str(source), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


def test_users_of_the_training_file_are_seen(tmp_path: Path, prep: Any) -> None:
    data = prep(rewardbench(tmp_path / "raw"))
    assert [(u.id, u.user_index, u.train_count, u.eval_count) for u in data.users] == [
        ("ann", 1, 2, 1),
        ("bob", 2, 2, 1),
        ("cy", 0, 0, 1),
        ("di", 0, 0, 1),
    ]
    assert [row.user_id for row in data.choices] == ["cy", "cy", "di", "di"]
    assert [row.id for row in data.train] == ["train-1", "train-2", "train-4", "train-5"]
    assert {row.id for row in data.choices} & {row.id for row in data.eval} == set()
    assert data.manifest["kept"] == {"train": 4, "eval": 4, "choices": 4}


def test_a_conversation(write_lines: Any, prep: Any) -> None:
    """The role `model` is the assistant's; in Chatbot Arena the chosen response is a list of one message."""
    rows = rewardbench_rows()
    answer = [{"content": "Because.", "role": "assistant"}]
    rows["train"] = [chosen("ann", 1, "train"), chosen("ann", 2, "val", chosen=answer)]
    for name, found in rows.items():
        source = write_lines(f"raw/{name}.jsonl", *found).parent
    first, second = prep(source).train
    assert first.prompt == [
        {"role": "user", "content": "Hello 1"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Why 1?"},
    ]
    assert first.chosen == [{"role": "assistant", "content": "Because of 1."}]
    assert second.chosen == [{"role": "assistant", "content": "Because."}]


def test_a_seen_user_is_seen_in_every_file(tmp_path: Path, prep: Any) -> None:
    """Where the files do not have different users, the context of a seen user is trained on wherever it stands."""
    rows = rewardbench_rows()
    rows["test"] += [chosen("ann", 900, "val"), chosen("ann", 901, "test")]
    for name, found in rows.items():
        write_parquet(tmp_path / f"raw/{name}.parquet", found)
    data = prep(tmp_path / "raw")
    ann = next(user for user in data.users if user.id == "ann")
    assert (ann.train_count, ann.eval_count) == (3, 2)
    assert "ann" not in {row.user_id for row in data.choices}


def test_the_content_hash_covers_the_choices(write_lines: Any, prep: Any) -> None:
    """What the base is shown in context depends on them."""
    rows, hashes = rewardbench_rows(), []
    for answer in ("Because.", "Perhaps."):
        rows["test"][0] = chosen("di", 1000, "train", chosen={"role": "model", "content": answer})
        for name, found in rows.items():
            source = write_lines(f"raw/{name}.jsonl", *found).parent
        hashes.append(prep(source).manifest["content_hash"])
    assert hashes[0] != hashes[1]


BAD = {
    "no split": ({"split": ...}, "column 'split' is missing"),
    "another split": ({"split": "validation"}, "'split' is 'validation', not train, val or test"),
    "no user": ({"user_id": None}, "'user_id' is null"),
    "the generic user": ({"user_id": "generic"}, "'user_id' is 'generic', which is reserved"),
    "empty context": ({"context": []}, "'context' is empty"),
    "another role": ({"context": [{"role": "tool", "content": "x"}]}, "'context' has a turn with the role 'tool'"),
    "two answers": ({"chosen": [{"role": "model", "content": "x"}] * 2}, "'chosen' holds 2 turns"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_rows(change: dict[str, Any], message: str, write_lines: Any, prep: Any) -> None:
    rows = rewardbench_rows()
    rows["train"].append(chosen("ann", 7, "train") | change)
    rows["train"][-1] = {key: value for key, value in rows["train"][-1].items() if value is not ...}
    for name, found in rows.items():
        source = write_lines(f"raw/{name}.jsonl", *found).parent
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message.startswith(f"{source}/train.jsonl:7: ")
    assert message in error.value.message
    assert prep(source, bad_rows="skip").manifest["dropped"]["malformed"] == 1


def test_equal_pairs_and_shared_prompts_are_reported(write_lines: Any, prep: Any) -> None:
    rows = rewardbench_rows()
    rows["train"].append(chosen("ann", 7, "train", rejected={"role": "model", "content": "Because of 7."}))
    rows["train"].append(chosen("bob", 970, "test"))  # ann was asked this in training
    for name, found in rows.items():
        source = write_lines(f"raw/{name}.jsonl", *found).parent
    data = prep(source)
    assert data.manifest["dropped"]["equal pair"] == 1
    assert data.manifest["warnings"] == ["1 held-out prompts are also in training: their accuracy is optimistic"]


def test_a_folder_without_a_file(tmp_path: Path, prep: Any) -> None:
    write_parquet(tmp_path / "raw/train.parquet", rewardbench_rows()["train"])
    with pytest.raises(PrlhfError, match=r"has no validation.jsonl"):
        prep(tmp_path / "raw")
