"""PRISM: its two sources, unseen users, held-out dialogues, and rows for judging."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prism_raw import ALL_SEEN, SURVEY, talk, turn
from typer.testing import CliRunner

from prlhf.config import PrepConfig
from prlhf.data import prepare, prism
from prlhf.data.prism.conversations import Conversation, Exchange
from prlhf.data.splits import draw_unseen
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.source.raw import Raw, RawRows

Make = Callable[..., Any]


def test_conversations_and_survey_rows_that_do_not_meet(prism_folder: Make, prism_prep: Make) -> None:
    talks = [talk("c0", "ann"), talk("c1", "nobody"), talk("c2", "ann", turn(0, "alone")), talk("c0", "ann")]
    data = prism_prep(prism_folder(["ann", "bob", "ann"], talks), **ALL_SEEN)
    assert data.manifest["dropped"] == {
        "malformed": 0,
        "repeat": 2,
        "conversation without a survey row": 1,
        "conversation without a comparison": 1,
    }
    assert data.manifest["participants"] == {"read": 2, "without conversations": 1}
    assert [u.id for u in data.users] == ["ann"]


def test_sources_that_lack_something(prism_folder: Make, prism_prep: Make, tmp_path: Path) -> None:
    source = prism_folder(["ann"], [talk("c0", "ann")])
    for given_source, message in (
        (source / "survey.jsonl", "is a file"),
        (tmp_path / "gone", "does not exist"),
    ):
        with pytest.raises(PrlhfError, match=message):
            prism_prep(given_source)
    for name in ("conversations", "survey"):
        (source / f"{name}.jsonl").rename(tmp_path / name)
        with pytest.raises(PrlhfError, match=f"raw has no {name}.jsonl"):
            prism_prep(source)
        (tmp_path / name).rename(source / f"{name}.jsonl")


@pytest.mark.parametrize("talks", [[], [talk("c0", "nobody")], [talk("c0", "ann", turn(0, "alone"))]])
def test_nothing_left(talks: list[Any], prism_folder: Make, prism_prep: Make) -> None:
    with pytest.raises(PrlhfError, match="no comparison is left in"):
        prism_prep(prism_folder(["ann"], talks))


def test_both_configs_of_the_hub_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nulls = {"if_chosen": None, "within_turn_id": None}  # `datasets` gives all messages the same keys
    held = {"survey": [SURVEY], "conversations": [talk("c0", "ann", [nulls | m for m in turn(0, "yes", "no")])]}

    def hub_splits(repo: str, instead: str, config: str) -> dict[str, RawRows]:
        assert repo == "HannahRoseKirk/prism-alignment"
        return {"train": RawRows(1, (Raw(f"{config}:row {i}", row) for i, row in enumerate(held[config])))}

    monkeypatch.setattr(prism, "hub_splits", hub_splits)
    manifest = prepare(PrepConfig(dataset="prism", out=tmp_path / "out", **ALL_SEEN))
    assert (manifest["source"], manifest["kept"]["train"]) == ("HannahRoseKirk/prism-alignment", 1)


def test_an_offline_hub_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match="data set HannahRoseKirk/prism-alignment is not in the cache") as error:
        prepare(PrepConfig(dataset="prism", out=tmp_path / "out"))
    assert error.value.hint.startswith("unset it, or run: prlhf prep prism --source FOLDER")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dialogues", "fraction", "count"),
    [
        (1, 0.1, 1),
        (2, 0.1, 1),
        (6, 0.1, 1),
        (11, 0.1, 2),
        (30, 0.1, 3),
        (2, 0.9, 1),
        (7, 0.99, 6),
        (1, 0, 0),
        (6, 0, 0),
    ],
)
def test_how_many_dialogues_are_held_out(dialogues: int, fraction: float, count: int) -> None:
    assert prism.held_out_count(dialogues, fraction) == count


def test_the_papers_number_of_unseen_users() -> None:
    users = [f"user{i}" for i in range(1396)]
    unseen = draw_unseen(users, 0.1, "0")
    assert len(unseen) == 140  # 162 minus those with a single dialogue
    assert unseen == draw_unseen(users, 0.1, "0") != draw_unseen(users, 0.1, "1")
    assert draw_unseen(["ann"], 0.9, "0") == draw_unseen([], 0.9, "0") == set()


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 5))
def test_no_dialogue_is_on_both_sides(users: list[str], unseen_fraction: float, fraction: float, seed: int) -> None:
    talks = [Conversation(str(i), user, [Exchange("q", "a", ["b"])]) for i, user in enumerate(users)]
    unseen = draw_unseen(prism.users_of(talks), unseen_fraction, str(seed))
    train, held_out = prism.split_dialogues(talks, unseen, fraction, seed)
    assert sorted([*train, *held_out], key=lambda t: int(t.id)) == talks
    assert not unseen & {t.user_id for t in train}
    for user in set(users) - unseen:
        count = users.count(user)
        assert sum(t.user_id == user for t in held_out) == prism.held_out_count(count, fraction)
        assert count == 1 or user in prism.users_of(train)


def test_a_row_to_judge(prism_folder: Make, prism_prep: Make) -> None:
    feedback = {"open_feedback": "Fine.", "choice_attributes": {"safety": 3, "fluency": None}}
    talks = [
        talk(f"c{i}", "ann", turn(0, "a", "b"), turn(1, "c"), turn(2, "d", "e", "f"), **feedback) for i in range(2)
    ]
    data = prism_prep(prism_folder([SURVEY], talks), unseen_fraction=0)
    first, second = data.judging
    assert first["conversation_id"] != data.train[0].id.split("-")[0]
    assert (first["user_id"], first["seen"], first["turn"], first["chosen"]) == ("ann", True, 0, "a")
    assert [m["content"] for m in second["prompt"]] == ["Q0", "a", "Q1", "c", "Q2"]
    assert first["material"] == {
        "gender": "Female",
        "ethnicity": "White",
        "religion": "pastafarian",
        "birth_country": "Peru",
        "self_description": "I like boats.",
        "system_string": "Be brief.",
        "stated_prefs_top": ["safety", "creativity", "fluency"],
        "open_feedback": "Fine.",
        "choice_attributes": {"safety": 3},
        "performance_attributes": {},
        "examples": [{"prompt": "Q2", "chosen": "d", "rejected": ["e", "f"]}],
    }
    assert second["material"]["examples"] == [{"prompt": "Q0", "chosen": "a", "rejected": ["b"]}]


def test_unseen_users_have_a_text_too(prism_folder: Make, prism_prep: Make) -> None:
    survey = [{"user_id": f"u{i}", "gender": f"g{i}"} for i in range(10)]
    data = prism_prep(
        prism_folder(survey, [talk(f"c{i}-{j}", f"u{i}") for i in range(10) for j in range(2)]), unseen_fraction=0.3
    )
    texts = {f"u{i}": f"Gender: g{i}" for i in range(10)}
    assert sum(not u.seen for u in data.users) == 3
    assert all(r.user_text == texts[r.user_id] for r in (*data.train, *data.eval))
    assert {u.id: u.text for u in data.users} == texts


def test_as_many_judged_users_as_asked_for(prism_folder: Make, prism_prep: Make) -> None:
    users = [f"u{i}" for i in range(20)]
    source = prism_folder(users, [talk(f"{user}-{i}", user) for user in users for i in range(2)])
    data = prism_prep(source, unseen_fraction=0.4, judging_users=10)
    assert data.manifest["judging"] == {"seen": 10, "unseen": 8}
    assert len(data.judging) == 10 + 2 * 8  # each of their held-out dialogues has one turn
    assert prism_prep(source, judging_users=0).judging == []


def test_prefs_on_the_command_line(prism_folder: Make, tmp_path: Path) -> None:
    from prlhf_cli.main import app

    args = ["prep", "prism", "--source", prism_folder([SURVEY], [talk("c0", "ann"), talk("c1", "ann")]), "--out", "out"]
    args[-1] = tmp_path / "cli"
    result = CliRunner().invoke(app, [*map(str, args), "--prefs", "order", "--unseen-fraction", "0"])
    assert result.exit_code == 0, result.output
    assert "response: values (" in read_prepared(tmp_path / "cli").users[0].text


def test_samples(shared_data: Path, prism_prep: Make) -> None:
    """The counts were taken from the files without this package."""
    raw = [json.loads(line) for line in (shared_data / "prism" / "conversations.jsonl").open()]
    pairs: dict[str, int] = defaultdict(int)  # per conversation; all its turns have a chosen response
    for row in raw:
        answers = [m for m in row["conversation_history"] if m["role"] == "model"]
        chosen = {m["turn"]: m["content"] for m in answers if m["if_chosen"]}
        pairs[row["conversation_id"]] += sum(not m["if_chosen"] and m["content"] != chosen[m["turn"]] for m in answers)
    owner = {row["conversation_id"]: row["user_id"] for row in raw}
    data = prism_prep(shared_data / "prism")
    found: dict[str, dict[str, int]] = {"train": defaultdict(int), "eval": defaultdict(int)}
    for part, rows in (("train", data.train), ("eval", data.eval)):
        for row in rows:
            found[part][row.id.split("-")[0]] += 1
            roles = [message["role"] for message in row.prompt]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            assert row.chosen != row.rejected
            assert row.user_text
            assert owner[row.id.split("-")[0]] == row.user_id
    assert not found["train"].keys() & found["eval"].keys()
    assert found["train"] | found["eval"] == {name: count for name, count in pairs.items() if count}
    assert data.user_ids == list(dict.fromkeys(row.user_id for row in data.train))
    assert not {u.id for u in data.users if not u.seen} & {row.user_id for row in data.train}
    single = sum(list(owner.values()).count(user) == 1 for user in data.user_ids)
    assert single == 0
    assert data.manifest["unseen"]["drawn"] == 12  # a tenth of 116
    assert sum(not u.seen for u in data.users) == sum(data.manifest["unseen"].values())
    assert data.manifest["participants"] == {"read": 120, "without conversations": 4}
    assert data.manifest["judging"] == {"seen": 25, "unseen": 25}
    held_out = {(row.user_id, row.id.split("-")[0]) for row in data.eval}
    judged = {row["user_id"] for row in data.judging}
    assert {(row["user_id"], row["conversation_id"]) for row in data.judging} == {x for x in held_out if x[0] in judged}


def test_the_seed_decides(shared_data: Path, prism_prep: Make) -> None:
    one, again, other = (prism_prep(shared_data / "prism", seed=seed) for seed in (1, 1, 2))
    assert (one.train, one.eval, one.users, one.judging) == (again.train, again.eval, again.users, again.judging)
    assert one.user_ids != other.user_ids
    assert {row["user_id"] for row in one.judging} != {row["user_id"] for row in other.judging}
