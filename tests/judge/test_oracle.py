"""The exact judge of the synthetic forum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from judge_rows import local_judge, row

from prlhf.config import JudgeConfig, PrepConfig
from prlhf.data import prepare
from prlhf.errors import PrlhfError
from prlhf.judge.verdicts import Pair

PROMPT = "TITLE: a strange week.\nPOST: on monday my boss sold boats. on tuesday my aunt lost hats.\nTL;DR:"
ONE, TWO = " on monday my boss sold boats.", " on monday my boss sold boats. on tuesday my aunt lost hats."
BACKWARDS = " on tuesday my aunt lost hats. on monday my boss sold boats."
WARM, FALSE, BROKEN = " on monday my dear boss sold boats.", " on monday my boss sold hats.", " boats boats"


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oracle") / "data"
    prepare(PrepConfig(dataset="demo-profiles", comparisons=1, out=out))
    return out


def pair_for(user: str, a: str, b: str) -> Pair:
    rows = [replace(row("p", user, text), prompt=PROMPT) for text in (a, b)]
    return Pair("p", user, 1, PROMPT, *rows)


@pytest.mark.parametrize(
    ("user", "a", "b", "verdict"),
    [
        ("short", ONE, TWO, "A"),
        ("long", ONE, TWO, "B"),
        ("forward", TWO, BACKWARDS, "A"),
        ("backward", TWO, BACKWARDS, "B"),
        ("warm", WARM, ONE, "A"),
        ("cold", WARM, ONE, "B"),
        ("warm", TWO, BACKWARDS, "tie"),
        ("short", FALSE, TWO, "B"),
        ("short", BROKEN, FALSE, "B"),
        ("generic", ONE, TWO, "tie"),
        ("generic", BROKEN, TWO, "B"),
    ],
)
def test_verdicts(profiles: Path, user: str, a: str, b: str, verdict: str) -> None:
    judge = local_judge(JudgeConfig(judge=f"oracle:{profiles}"))
    assert judge([pair_for(user, a, b)]) == [verdict]


def test_a_response_cut_off_by_the_limit_is_not_well_formed(profiles: Path) -> None:
    judge = local_judge(JudgeConfig(judge=f"oracle:{profiles}"))
    pair = pair_for("long", TWO, ONE)
    assert judge([replace(pair, a=replace(pair.a, finish_reason="length"))]) == ["B"]


def test_data_without_tastes_and_users_it_does_not_know_are_refused(profiles: Path, tmp_path: Path) -> None:
    prepare(PrepConfig(dataset="demo", comparisons=1, out=tmp_path / "demo"))
    with pytest.raises(PrlhfError, match="does not know its users' tastes"):
        local_judge(JudgeConfig(judge=f"oracle:{tmp_path / 'demo'}"))
    with pytest.raises(PrlhfError, match="no user 'zoe'"):
        local_judge(JudgeConfig(judge=f"oracle:{profiles}"))([pair_for("zoe", ONE, TWO)])
    with pytest.raises(PrlhfError, match="is not a prepared data set"):
        local_judge(JudgeConfig(judge=f"oracle:{tmp_path / 'nothing'}"))
