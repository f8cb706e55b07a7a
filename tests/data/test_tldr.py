"""TL;DR: the paper's prompt and filters, on literal rows and on the raw samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(source: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset="tldr", source=str(source), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


@pytest.fixture
def folder(write_lines: Any, tldr_row: Any) -> Any:
    """folder(train row, ...): a raw folder with these rows and one validation row by w1."""

    def make(*train: Any) -> Path:
        write_lines("raw/validation.jsonl", tldr_row())
        path: Path = write_lines("raw/train.jsonl", *train)
        return path.parent

    return make


def test_prompt_and_responses(folder: Any, tldr_row: Any, prep: Any) -> None:
    article = {"post": None, "article": "News.", "title": None, "subreddit": None}
    data = prep(folder(tldr_row(), tldr_row(choice=1, info=article)))
    first, second = data.train
    assert first.prompt == "SUBREDDIT: r/tifu\nTITLE: A title\nPOST: My post.\nTL;DR: "
    assert (first.chosen, first.rejected) == ("the long one", "short")
    assert second.prompt == "SUBREDDIT: r/\nTITLE: \nPOST: News.\nTL;DR: "
    assert (second.chosen, second.rejected) == ("short", "the long one")
    assert [r.id for r in (*data.train, *data.eval)] == ["train-1", "train-2", "eval-1"]


@pytest.mark.parametrize(
    ("policies", "kept"),
    [
        (("sup1", "sup4"), True),
        (("sup4_ppo_rm4_t.7", "sup4"), False),
        (("sup1", "ref"), False),
        (("sup_cnn", "sup1"), False),
    ],
)
def test_only_supervised_policies(policies: Any, kept: bool, folder: Any, tldr_row: Any, prep: Any) -> None:
    data = prep(folder(tldr_row(), tldr_row(policies=policies)))
    assert len(data.train) == 1 + kept
    assert data.manifest["dropped"]["other policies"] == 1 - kept


def test_other_policies_are_dropped_before_their_text_is_judged(folder: Any, tldr_row: Any, prep: Any) -> None:
    data = prep(folder(tldr_row(), tldr_row(texts=("", None), policies=("ref", "sup1"))))
    assert data.manifest["dropped"]["other policies"] == 1


def test_equal_summaries_are_dropped_after_stripping(folder: Any, tldr_row: Any, prep: Any) -> None:
    data = prep(folder(tldr_row(), tldr_row(texts=(" same", "same\n"))))
    assert data.manifest["dropped"]["equal pair"] == 1


def test_the_most_active_workers(folder: Any, tldr_row: Any, prep: Any) -> None:
    workers = ["w9", "w1", "w2", "w2", "w1", "w3"]
    noise = [tldr_row(worker="w3", policies=("sup1", "ppo"))] * 5  # counted before the filter, w3 would come first
    data = prep(folder(*(tldr_row(worker=w) for w in workers), *noise), top_users=3)
    assert [(u.id, u.user_index, u.train_count, u.eval_count) for u in data.users] == [
        ("w1", 1, 2, 1),
        ("w2", 2, 2, 0),
        ("w3", 3, 1, 0),
    ]
    assert data.manifest["dropped"]["less active workers"] == 1


def test_simulated_preferences(folder: Any, tldr_row: Any, prep: Any) -> None:
    rows = [tldr_row(worker=f"w{i % 4}", choice=i % 2) for i in range(16)]
    ties = [tldr_row(texts=("abc d", "efg h"))] * 3
    data = prep(folder(*rows, *ties), simulate="length", minority=0.25)
    minority = data.manifest["simulated"]["minority"]
    assert len(minority) == 1
    assert {r.user_id for r in data.train if r.chosen == "short"} == set(minority)
    assert {r.user_id for r in data.train if r.chosen == "the long one"} == {f"w{i}" for i in range(4)} - set(minority)
    assert data.manifest["dropped"]["equally long"] == 3
    assert data.manifest["options"]["minority"] == 0.25


BAD = {
    "no worker": ({"worker": ...}, "column 'worker' is missing"),
    "no info": ({"info": None}, "'info' is null, not a mapping"),
    "boolean choice": ({"choice": True}, "'choice' is True, not 0 or 1"),
    "choice of three": ({"choice": 2}, "'choice' is 2, not 0 or 1"),
    "null choice": ({"choice": None}, "'choice' is None, not 0 or 1"),
    "one summary": ({"summaries": []}, "'summaries' is not a list of two"),
    "summaries are text": ({"summaries": ["a", "b"]}, "an item of 'summaries' is text"),
    "empty summary": ({"texts": (" ", "b")}, "'summaries.text' is empty"),
    "null policy": ({"policies": (None, "sup1")}, "'summaries.policy' is null"),
}
BAD_INFO = {
    "nothing to sum up": ({"post": None}, "'info.post' and 'info.article' are both null"),
    "empty post": ({"post": ""}, "'info.post' is empty"),
    "title is a number": ({"title": 5}, "'info.title' is a number"),
    "subreddit is false": ({"subreddit": False}, "'info.subreddit' is true or false"),
}
BAD_ROWS = BAD | {name: ({"more": change}, message) for name, (change, message) in BAD_INFO.items()}


@pytest.mark.parametrize(("change", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows(change: dict[str, Any], message: str, folder: Any, tldr_row: Any, prep: Any) -> None:
    changes = dict(change)
    more = changes.pop("more", None)
    bad = tldr_row(info=more, **changes) if more else tldr_row(**{k: v for k, v in changes.items() if k != "info"})
    if "info" in changes:
        bad["info"] = changes["info"]
    source = folder(tldr_row(), bad)
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message.startswith(f"{source}/train.jsonl:2: ")
    assert message in error.value.message
    assert prep(source, bad_rows="skip").manifest["dropped"]["malformed"] == 1


def test_sources_that_lack_something(tldr_row: Any, write_lines: Any, prep: Any, tmp_path: Path) -> None:
    train = write_lines("raw/train.jsonl", tldr_row())
    for source, message in (
        (train, "is a file"),
        (tmp_path / "gone", "does not exist"),
        (train.parent, "has no validation.jsonl"),
    ):
        with pytest.raises(PrlhfError, match=message):
            prep(source)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "train/0000.parquet"])
def test_parquet_as_the_hub_converts_it(name: str, tldr_row: Any, write_lines: Any, prep: Any) -> None:
    source = write_lines("raw/validation.jsonl", tldr_row()).parent
    (source / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([tldr_row(), tldr_row(worker="w2")]), source / name)
    assert [r.user_id for r in prep(source).train] == ["w1", "w2"]


def test_samples(shared_data: Path, prep: Any) -> None:
    """The counts were taken from the files without this package."""
    data = prep(shared_data / "tldr", simulate="length")
    raw = [json.loads(line) for line in (shared_data / "tldr" / "train.jsonl").open()]
    policies = [[s["policy"] for s in r["summaries"]] for r in raw]
    supervised = [r for r, p in zip(raw, policies, strict=True) if not any("ppo" in name for name in p)]
    different = [r for r in supervised if len({s["text"].strip() for s in r["summaries"]}) == 2]
    top = Counter(r["worker"] for r in different).most_common(10)
    funnel = {f["filter"]: (f["train"]["before"], f["train"]["after"]) for f in data.manifest["filters"]}
    assert funnel["malformed"] == (3000, 3000)
    assert funnel["other policies"] == (3000, len(supervised))
    assert funnel["equal pair"] == (len(supervised), len(different))
    assert funnel["less active workers"] == (len(different), sum(count for _, count in top))
    assert funnel["equally long"][1] == data.manifest["kept"]["train"] == len(data.train)
    assert sum(data.manifest["read"].values()) == 3700
    assert sum(data.manifest["dropped"].values()) + len(data.train) + len(data.eval) == 3700
    assert len(data.users) == 10
    assert len(data.manifest["simulated"]["minority"]) == 3
    assert all(r.seen for r in data.eval)
