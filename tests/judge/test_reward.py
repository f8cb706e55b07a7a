"""A trained run as the judge: read as the user, whichever side a response stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_rows import local_judge

from prlhf.config import JudgeConfig
from prlhf.dataset import Comparison, read_prepared
from prlhf.errors import PrlhfError
from prlhf.judge.reward import RewardJudge
from prlhf.judge.verdicts import Pair
from prlhf.responses import Response
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


def response(user: str, prompt: str, text: str) -> Response:
    return Response("p1", user, 0, prompt, text, 1, 1, "stop", {})


def pair_of(row: Comparison, user: str | None = None) -> Pair:
    """chosen against rejected, as the row's user or another."""
    user = user or row.user_id
    a, b = (response(user, str(row.prompt), str(text)) for text in (row.chosen, row.rejected))
    return Pair("p1", user, 0, row.prompt, a, b)


@pytest.fixture(scope="module")
def rows(prepared: Path) -> list[Comparison]:
    return read_prepared(prepared).eval


def judge_of(run: Path, **options: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"judge": f"reward:{run}", "device": "cpu"} | options)


def test_swapping_a_and_b_mirrors_the_verdicts(trained: Path, rows: list[Comparison]) -> None:
    judge = local_judge(judge_of(trained))
    pairs = [pair_of(row, user) for row in rows for user in ("ann", "cat", "generic", "nobody")]
    verdicts = judge(pairs)
    assert {"A", "B"} <= set(verdicts)
    mirrored = judge([replace(pair, a=pair.b, b=pair.a) for pair in pairs])
    assert mirrored == [{"A": "B", "B": "A", "tie": "tie"}[v] for v in verdicts]
    assert judge([replace(pair, b=pair.a) for pair in pairs]) == ["tie"] * len(pairs)


def test_the_scores_are_the_users_implicit_rewards(trained: Path, prepared: Path, rows: list[Comparison]) -> None:
    import json

    scores = RewardJudge(str(trained), judge_of(trained, batch_size=3)).scores
    seen = [row for row in rows if row.seen]
    margins = [a - b for a, b in scores([pair_of(row) for row in seen])]
    expected = json.loads((trained / "results.json").read_text())["eval"]["margin_by_user"]
    for user in ("ann", "bob", "cat"):
        mine = [m for m, row in zip(margins, seen, strict=True) if row.user_id == user]
        assert sum(mine) / len(mine) == pytest.approx(expected[user], abs=1e-5)


def test_unknown_users_are_generic(trained: Path, rows: list[Comparison]) -> None:
    scores = RewardJudge(str(trained), judge_of(trained)).scores
    readings = [scores([pair_of(row, user) for row in rows]) for user in ("nobody", "generic", "bob")]
    assert readings[0] == readings[1]
    assert readings[0] != readings[2]


def test_a_full_finetune_judges_against_its_base(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison]
) -> None:
    results = train(make_config(tmp_path / "full", full_finetune=True))
    scores = RewardJudge(str(tmp_path / "full"), judge_of(tmp_path / "full")).scores
    margins = [a - b for a, b in scores([pair_of(row) for row in rows if row.user_id == "bob"])]
    assert sum(margins) / 2 == pytest.approx(results["eval"]["margin_by_user"]["bob"], abs=1e-5)


def test_two_prompts_under_one_id_are_refused(trained: Path, rows: list[Comparison]) -> None:
    pair = pair_of(rows[0])
    other = replace(pair, b=replace(pair.b, prompt="another"))
    with pytest.raises(PrlhfError, match="prompt 'p1' differs between A and B"):
        RewardJudge(str(trained), judge_of(trained)).scores([other])


def test_empty_responses_and_no_pairs(trained: Path, rows: list[Comparison]) -> None:
    scores = RewardJudge(str(trained), judge_of(trained)).scores
    assert scores([]) == []
    pair = pair_of(rows[0])
    ((a, b),) = scores([replace(pair, a=replace(pair.a, response=""))])
    assert a == a != b
