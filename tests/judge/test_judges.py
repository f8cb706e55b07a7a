import math

import pytest
from judge_rows import local_judge, row

from prlhf.config import JudgeConfig
from prlhf.config.judge import FEW_SHOT
from prlhf.errors import PrlhfError
from prlhf.extensions import JUDGES
from prlhf.judge.judges import ALWAYS_USED, LocalJudge, judge, judge_names, verdicts_by_score
from prlhf.judge.verdicts import Pair, Verdict


def pair_of(a: str, b: str) -> Pair:
    return Pair("p1", "anna", 1, "text of p1", row("p1", "anna", a), row("p1", "anna", b))


PAIRS = [pair_of("one two", "one"), pair_of("", "one"), pair_of("a  b", "long-words evenlonger")]


@pytest.mark.parametrize(
    ("name", "verdicts"), [("rule:longer", ["A", "B", "tie"]), ("rule:shorter", ["B", "A", "tie"])]
)
def test_rules_count_words(name: str, verdicts: list[str]) -> None:
    verdicts_on = local_judge(JudgeConfig(judge=name))
    assert verdicts_on(PAIRS) == verdicts
    assert verdicts_on([]) == []


def test_scores_decide_and_equal_scores_tie() -> None:
    assert verdicts_by_score([(1.0, 0.5), (-2.0, -1.0), (0.25, 0.25), (math.inf, 0.0)]) == ["A", "B", "tie", "A"]
    assert verdicts_by_score([(0.0, 1.0)] * 3) == ["B", "B", "B"]


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(PrlhfError, match="scores of pair 1 are nan and 2"):
        verdicts_by_score([(0.0, 1.0), (math.nan, 2.0)])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges that a test registers are gone after it; those of prlhf, which are imported once, stay."""
    for name in JUDGES.ours:
        JUDGES[name]
    monkeypatch.setattr(JUDGES, "_found", dict(JUDGES._found))


@pytest.mark.usefixtures("registered")
def test_a_judge_of_ones_own_is_one_decorated_class() -> None:
    @judge("starts-with")
    class StartsWith(LocalJudge):
        metavar = "WORD"
        uses = frozenset(("device",))

        def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
            starts = [(p.a.response.startswith(self.argument), p.b.response.startswith(self.argument)) for p in pairs]
            return verdicts_by_score(starts)

    assert local_judge(JudgeConfig(judge="starts-with:o:n", device="cpu"))(PAIRS) == ["tie"] * 3
    assert local_judge(JudgeConfig(judge="starts-with:one", batch_size=3))(PAIRS) == ["tie", "B", "tie"]
    assert "starts-with:WORD" in judge_names()
    for name in ("starts-with", "starts-with:"):
        with pytest.raises(PrlhfError, match=f"judge '{name}' lacks its WORD; write starts-with:WORD"):
            local_judge(JudgeConfig(judge=name))
    with pytest.raises(
        PrlhfError, match="model = x is not used by --judge starts-with:a; use it with --judge reward:RUN"
    ):
        local_judge(JudgeConfig(judge="starts-with:a", model="x"))


def test_names_and_what_they_take() -> None:
    assert judge_names() == ["rule:shorter", "rule:longer", "oracle:DATASET", "reward:RUN", "llm", "llm:MODEL"]
    for name in ("reward", "reward:"):
        with pytest.raises(PrlhfError, match=f"judge '{name}' lacks its RUN; write reward:RUN"):
            local_judge(JudgeConfig(judge=name))


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
        local_judge(JudgeConfig(judge=name))
    assert f"no judge is called '{name}'" in error.value.message
    assert hint in error.value.hint


def test_settings_and_judges_agree_on_what_is_used() -> None:
    """Every key is read by a judge, by all of them (help says which: tests/cli/test_cli_options.py), or without one."""
    of_checkpoints = FEW_SHOT | {"general", "general_users"}
    used = ALWAYS_USED.union(of_checkpoints, *(JUDGES[name].uses for name in JUDGES.ours))
    assert used == set(JudgeConfig.model_fields)
