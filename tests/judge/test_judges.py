import math

import pytest
from judge_rows import row

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge import judges
from prlhf.judge.judges import by_scorer, find_judge, judge_by_scores, judge_names
from prlhf.judge.pairs import Pair


def pair_of(a: str, b: str) -> Pair:
    return Pair("p1", "anna", 1, "text of p1", row("p1", "anna", a), row("p1", "anna", b))


PAIRS = [pair_of("one two", "one"), pair_of("", "one"), pair_of("a  b", "long-words evenlonger")]


@pytest.mark.parametrize(
    ("name", "verdicts"), [("rule:longer", ["A", "B", "tie"]), ("rule:shorter", ["B", "A", "tie"])]
)
def test_rules_count_words(name: str, verdicts: list[str]) -> None:
    judge = find_judge(JudgeConfig(judge=name))
    assert judge(PAIRS) == verdicts
    assert judge([]) == []


def test_scores_decide_and_equal_scores_tie() -> None:
    assert judge_by_scores([(1.0, 0.5), (-2.0, -1.0), (0.25, 0.25), (math.inf, 0.0)]) == ["A", "B", "tie", "A"]
    assert by_scorer(lambda pairs: [(0.0, 1.0)] * len(pairs))(PAIRS) == ["B", "B", "B"]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(PrlhfError, match="scores of pair 1 are nan and 2"):
        judge_by_scores([(0.0, 1.0), (math.nan, 2.0)])


def test_a_judge_with_an_argument_registers_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def make(run: str, config: JudgeConfig) -> judges.Judge:
        made.append((run, config.batch_size))
        return by_scorer(lambda pairs: [(1.0, 0.0)] * len(pairs))

    monkeypatch.setitem(judges.WITH_ARGUMENT, "reward", ("RUN", make))
    assert find_judge(JudgeConfig(judge="reward:runs/c:d", batch_size=3))(PAIRS) == ["A", "A", "A"]
    assert made == [("runs/c:d", 3)]
    assert "reward:RUN" in judge_names()
    for name in ("reward", "reward:"):
        with pytest.raises(PrlhfError, match=f"judge '{name}' lacks its RUN; write reward:RUN"):
            find_judge(JudgeConfig(judge=name))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rule:short", "did you mean 'rule:shorter'"),
        ("longer", "did you mean 'rule:longer'"),
        ("xyz", "known: "),
        ("", "known: "),
    ],
)
def test_unknown_judges_are_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(PrlhfError) as error:
        find_judge(JudgeConfig(judge=name))
    assert f"no judge is called '{name}'" in error.value.message
    assert hint in error.value.hint
