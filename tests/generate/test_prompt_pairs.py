"""For whom, and to which prompt: groups of users, and prompts for everyone, of one's own, or chosen for judging."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.config import GenerateConfig
from prlhf.dataset import Comparison, Prepared, User, prompt_id, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.baselines import baseline_of
from prlhf.generate.pairs import choose_pairs, choose_readers
from prlhf.generate.readers import Reader, known_readers
from prlhf.generate.run import generate
from prlhf.responses import read_responses

RUN = baseline_of(GenerateConfig())
INDEX = {"ann": 1, "bob": 2, "zoe": 0, "yan": 0}


def held_out(*asked: tuple[str, str]) -> list[Comparison]:
    return [
        Comparison(f"{i}", prompt, "yes", "no", user, INDEX[user], "", prompt_id(prompt), INDEX[user] > 0)
        for i, (prompt, user) in enumerate(asked)
    ]


USERS = [User(user, index, f"text of {user}", f"taste of {user}", 1, 1, index > 0) for user, index in INDEX.items()]
# ann was asked p twice; q was put to ann, zoe and bob; yan was asked nothing
DATA = Prepared(
    [], held_out(("p", "ann"), ("q", "ann"), ("p", "ann"), ("q", "zoe"), ("r", "zoe"), ("q", "bob")), USERS, {},
    judging=[{"prompt": "q", "user_id": "zoe"}, {"prompt": "s", "user_id": "yan"}, {"prompt": "q", "user_id": "zoe"}],
)  # fmt: skip
KNOWN = known_readers({"ann": 1, "bob": 2}, {"ann": "text of ann"}, DATA)


def users(**options: Any) -> list[str]:
    config = GenerateConfig.model_validate(options)
    return [reader.id for reader in choose_readers(KNOWN, baseline_of(config), config)]


def pairs(data: Prepared | None = DATA, **options: Any) -> list[tuple[Any, str]]:
    config = GenerateConfig.model_validate(options)
    known, baseline = known_readers({"ann": 1, "bob": 2}, {}, data), baseline_of(config, data)
    found = choose_pairs(choose_readers(known, baseline, config), baseline, config)
    return [(prompt, reader.id) for prompt, reader in found]


def test_who_is_known() -> None:
    assert list(KNOWN) == ["generic", "ann", "bob", "zoe", "yan"]
    assert KNOWN["ann"] == Reader("ann", 1, "text of ann", "taste of ann")
    assert KNOWN["bob"] == Reader("bob", 2, "", "taste of bob")  # the model's own texts, not the data's
    assert KNOWN["zoe"] == Reader("zoe", 0, "text of zoe", "taste of zoe")
    assert list(known_readers({"ann": 1}, {}, None)) == ["generic", "ann"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["ann", "bob", "generic"]),
        ({"prompts": "mine.txt"}, ["ann", "bob", "generic"]),
        ({"prompts": "own"}, ["ann", "bob", "zoe", "yan"]),
        ({"prompts": "judging"}, ["ann", "bob", "zoe", "yan"]),
        ({"baseline": "chosen"}, ["ann", "bob", "zoe", "yan"]),
        ({"users": "seen"}, ["ann", "bob"]),
        ({"users": "unseen"}, ["zoe", "yan"]),
        ({"users": "unseen", "prompts": "own"}, ["zoe", "yan"]),
        ({"users": "generic, unseen,bob,zoe"}, ["generic", "zoe", "yan", "bob"]),
        ({"users": "all,generic", "prompts": "own"}, ["ann", "bob", "zoe", "yan", "generic"]),
        ({"users": "dan,seen", "unknown_as_generic": True}, ["dan", "ann", "bob"]),
        ({"users": "all", "baseline": "base"}, ["generic"]),
    ],
)
def test_groups_of_users(asked: dict[str, Any], expected: list[str]) -> None:
    assert users(**asked) == expected


def test_an_unknown_group_names_the_nearest() -> None:
    with pytest.raises(PrlhfError, match=r"user 'unsen' is unknown to this model; did you mean 'unseen' or 'seen'\?"):
        users(users="unsen")


def test_a_group_without_users() -> None:
    known = known_readers({"ann": 1}, {}, None)
    with pytest.raises(PrlhfError, match="users = 'unseen' names no user; use all, seen, unseen, generic"):
        choose_readers(known, RUN, GenerateConfig(users="unseen"))


def test_held_out_prompts_are_everyones() -> None:
    everyone = ["ann", "bob", "generic"]
    assert pairs() == [(prompt, user) for prompt in "pqr" for user in everyone]
    assert pairs(max_prompts=1) == [("p", user) for user in everyone]


def test_own_prompts() -> None:
    """By prompt, then by user; the generic user answers every one of them, where asked for."""
    own = [("p", "ann"), ("q", "ann"), ("q", "zoe"), ("q", "bob"), ("r", "zoe")]
    assert pairs(prompts="own") == own
    assert pairs(prompts="own", users="seen") == [pair for pair in own if pair[1] != "zoe"]
    assert pairs(prompts="own", users="unseen") == [("q", "zoe"), ("r", "zoe")]
    assert pairs(prompts="own", users="generic") == [(prompt, "generic") for prompt in "pqr"]
    assert pairs(prompts="own", users="bob,generic") == [
        ("p", "generic"),
        ("q", "bob"),
        *[(p, "generic") for p in "qr"],
    ]
    assert pairs(prompts="own", baseline="base") == pairs(prompts="own", users="generic")
    assert pairs(baseline="chosen") == own


def test_max_prompts_is_per_user_for_own_prompts() -> None:
    assert pairs(prompts="own", max_prompts=1) == [("p", "ann"), ("q", "zoe"), ("q", "bob")]
    assert pairs(prompts="own", max_prompts=1, users="generic") == [("p", "generic"), ("q", "generic")]


def test_pairs_for_judging() -> None:
    assert pairs(prompts="judging") == [("q", "zoe"), ("s", "yan")]
    assert pairs(prompts="judging", users="yan") == [("s", "yan")]
    with pytest.raises(
        PrlhfError, match=r"prompts = judging, and the data set has no judging.jsonl; use --prompts own"
    ):
        pairs(replace(DATA, judging=[]), prompts="judging")


def test_users_who_were_asked_nothing() -> None:
    with pytest.raises(PrlhfError, match="prompts = own holds no prompt for users = yan; ask for other users"):
        pairs(prompts="own", users="yan")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([*INDEX])), min_size=1), st.integers(1, 3))
def test_own_prompts_are_the_first_ones_of_each_user(asked: list[tuple[str, str]], limit: int) -> None:
    data = replace(DATA, eval=held_out(*asked))
    found = pairs(data, prompts="own", max_prompts=limit)
    assert len(found) == len(set(found))
    for user in INDEX:
        distinct = list(dict.fromkeys(prompt for prompt, whose in asked if whose == user))
        assert {prompt for prompt, whose in found if whose == user} == set(distinct[:limit])
    assert max(Counter(user for _, user in found).values()) <= limit
    generic = pairs(data, prompts="own", max_prompts=limit, users="generic")
    assert {prompt for prompt, _ in generic} == {prompt for prompt, _ in found}


# ---- written ----


def rows_of(tmp_path: Path, run: Path, **options: Any) -> list[tuple[str, int, Any]]:
    values = {"out": tmp_path / "out.jsonl", "max_new_tokens": 2, "device": "cpu"}
    generate(run, GenerateConfig.model_validate(values | options))
    return [(row.user_id, row.user_index, row.prompt) for row in read_responses(tmp_path / "out.jsonl")]


def test_a_run_writes_to_everyones_own_prompts(tmp_path: Path, trained: Path, prepared: Path) -> None:
    expected = [(row.user_id, row.user_index, row.prompt) for row in read_prepared(prepared).eval]
    assert sorted(rows_of(tmp_path, trained, prompts="own")) == sorted(expected)


def test_a_run_writes_to_the_pairs_for_judging(tmp_path: Path, trained: Path, prepared: Path) -> None:
    data = read_prepared(prepared)
    asked = [{"prompt": data.eval[i].prompt, "user_id": user, "history": []} for i, user in ((0, "zoe"), (5, "cat"))]
    write_prepared(tmp_path / "d", replace(data, judging=asked))
    rows = rows_of(tmp_path, trained, prompts="judging", dataset=str(tmp_path / "d"))
    assert rows == [("zoe", 0, data.eval[0].prompt), ("cat", 3, data.eval[5].prompt)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ('"Lee, Ann"', ["Lee, Ann"]),
        ('bob, "Lee, Ann",generic', ["bob", "Lee, Ann", "generic"]),
        ('"the ""boss"""', ['the "boss"']),
        ("", []),
    ],
)
def test_an_id_with_a_comma_stands_in_quotes(asked: str, expected: list[str]) -> None:
    known = known_readers({"Lee, Ann": 1, "bob": 2, 'the "boss"': 3}, {}, None)
    if not expected:
        with pytest.raises(PrlhfError, match="names no user"):
            choose_readers(known, RUN, GenerateConfig(users=asked))
        return
    assert [reader.id for reader in choose_readers(known, RUN, GenerateConfig(users=asked))] == expected


def test_an_id_with_a_comma_and_no_quotes_is_explained() -> None:
    known = known_readers({"Lee, Ann": 1}, {}, None)
    with pytest.raises(PrlhfError, match=r"user 'Lee' is unknown.*an id with a comma stands in double quotes"):
        choose_readers(known, RUN, GenerateConfig(users="Lee, Ann"))
    with pytest.raises(PrlhfError, match=r"cannot be read: .*; separate ids by commas; write an id"):
        choose_readers(known, RUN, GenerateConfig(users='"Lee, Ann'))
