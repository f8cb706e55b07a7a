"""UF-P-2 and UF-P-4: pairs by the ratings of each attribute, and new persons with a few choices each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from few_shot_raw import completion, rated, ultrafeedback

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(rows: Any, **options: Any) -> Prepared:
        source = ultrafeedback(tmp_path / "raw", rows)
        prepare(PrepConfig(dataset="ultrafeedback", source=str(source), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


def said(row: Any) -> str:
    text: str = row.chosen[0]["content"]
    return text.split()[0]


def test_each_user_chooses_by_an_attribute(prep: Any) -> None:
    """Of 20 pairs half are the pool, and a fifth of the other ten prompts is held out."""
    data = prep(list(map(rated, range(20))), eval_fraction=0.2)
    assert [(u.id, u.train_count, u.eval_count) for u in data.users if u.seen] == [
        ("helpfulness", 8, 2),
        ("honesty", 8, 2),
    ]
    assert {(row.user_id, said(row)) for row in data.train} == {("helpfulness", "helpful"), ("honesty", "honest")}
    assert data.train[0].prompt[0]["role"] == "user"
    assert data.manifest["pool"] == 10


def test_every_held_out_choice_is_that_of_a_new_person(prep: Any) -> None:
    data = prep(list(map(rated, range(20))), eval_fraction=0.2, shots=3)
    new = [row for row in data.eval if not row.seen]
    assert [user.eval_count for user in data.users if not user.seen] == [1] * len(new) == [1] * 4
    assert Counter(row.user_id for row in data.choices) == {row.user_id: 3 for row in new}
    prompts = {row.prompt[0]["content"] for row in (*data.train, *data.eval)}
    for row in data.choices:
        attribute = row.user_id.split("-")[0]
        assert row.chosen[0]["content"].startswith({"helpfulness": "helpful", "honesty": "honest"}[attribute])
        assert row.prompt[0]["content"] not in prompts
    by_person = {(row.user_id.split("-")[0], said(row)) for row in new}
    assert by_person == {("helpfulness", "helpful"), ("honesty", "honest")}
    assert [row.prompt for row in new] == [row.prompt for row in data.eval if row.seen]


def test_four_attributes(prep: Any) -> None:
    """A user has no choice between responses that are equal on their attribute; those in the pool decide everywhere."""
    equal = [
        rated(
            100 + n,
            completion("one", helpfulness="5", honesty="2", truthfulness="4"),
            completion("other", helpfulness="1", honesty="3", truthfulness="1"),
        )
        for n in range(6)
    ]
    data = prep([*map(rated, range(20)), *equal], attributes="four", eval_fraction=0)
    counts = {user.id: user.train_count for user in data.users}
    assert counts == {"helpfulness": 16, "honesty": 16, "truthfulness": 16, "instruction_following": 10}
    assert {said(row) for row in data.train if row.user_id == "truthfulness"} == {"helpful", "one"}


def test_many_users_with_one_attribute_each(prep: Any) -> None:
    data = prep(list(map(rated, range(20))), users=6, eval_fraction=0.2)
    counts = {user.id: user.train_count for user in data.users if user.seen}
    assert counts == {f"{name}-{n}": 3 if n < 3 else 2 for name in ("helpfulness", "honesty") for n in (1, 2, 3)}
    assert {(row.user_id.split("-")[0], said(row)) for row in data.train} == {
        ("helpfulness", "helpful"),
        ("honesty", "honest"),
    }
    with pytest.raises(PrlhfError, match="users = 5 cannot be divided by the 2 attributes; set it to a multiple of 2"):
        prep([], users=5)


GOOD = [rated(n) for n in range(20)]
DROPPED = {
    "agreed": (rated(99, completion("a", helpfulness="5", honesty="5"), completion("b")), "no disagreement"),
    "equal on one": (rated(99, completion("a", helpfulness="5"), completion("b")), "no disagreement"),
    "not rated": (
        rated(99, completion("a", honesty="N/A", helpfulness="5"), completion("b")),
        "no worse response that is rated",
    ),
    "blank": (rated(99, completion(" ", honesty="1"), completion("b")), "no worse response that is rated"),
    "equal means": (
        rated(99, completion("a", helpfulness="5", honesty="1"), completion("b", helpfulness="1", honesty="5")),
        "no worse response that is rated",
    ),
    "TruthfulQA": (rated(99, source="truthful_qa"), "prompt of TruthfulQA"),
}


@pytest.mark.parametrize(("row", "reason"), DROPPED.values(), ids=DROPPED)
def test_rows_that_are_dropped(row: Any, reason: str, prep: Any) -> None:
    data = prep([*GOOD, row])
    assert {why: count for why, count in data.manifest["dropped"].items() if count} == {reason: 1}


def test_the_best_is_compared_with_a_worse_one(prep: Any) -> None:
    """Never with another that is as good, and with each of the worse ones in some row."""
    best, equal = (completion(name, helpfulness="5", honesty="4") for name in ("best", "equal"))
    worse = [completion(f"worse{n}", helpfulness="1", honesty="5") for n in (1, 2)]
    data = prep([rated(n, best, equal, *worse) for n in range(40)])
    assert {said(row) for row in data.train if row.user_id == "helpfulness"} == {"best"}
    assert {said(row) for row in data.train if row.user_id == "honesty"} == {"worse1", "worse2"}


BAD = {
    "no instruction": ({"instruction": ...}, "column 'instruction' is missing"),
    "no completions": ({"completions": None}, "'completions' is null, not a list"),
    "no response": ({"completions": [{"annotations": {}}]}, "column 'response' is missing"),
    "no annotations": ({"completions": [{"response": "a"}]}, "column 'annotations' is missing"),
    "no attribute": ({"completions": [{"response": "a", "annotations": {}}]}, "column 'helpfulness' is missing"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_rows(change: dict[str, Any], message: str, prep: Any) -> None:
    rows = [*GOOD, rated(99, **change)]
    with pytest.raises(PrlhfError) as error:
        prep(rows)
    assert "raw/evol_instruct.jsonl:11: " in error.value.message
    assert message in error.value.message
    assert prep(rows, bad_rows="skip").manifest["dropped"]["malformed"] == 1


def test_too_few_pairs_for_a_pool(prep: Any) -> None:
    with pytest.raises(
        PrlhfError, match=r"shots = 4, and the pool of pairs to choose from has 3 .*; set it to at most 3"
    ):
        prep(GOOD[:6])
    with pytest.raises(PrlhfError, match=r"no comparison is left in .*: 1 read, 1 no disagreement"):
        prep([DROPPED["agreed"][0]])


def test_sources_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "flan.jsonl").write_text("{}\n")
    for name, message in (("flan.jsonl", "is a file"), ("gone", "does not exist")):
        with pytest.raises(PrlhfError, match=message):
            prepare(PrepConfig(dataset="ultrafeedback", source=str(tmp_path / name), out=tmp_path / "out"))
