"""What is reported with a win-rate: significance, length control, agreement, position bias, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.errors import PrlhfError
from prlhf.judge.calibrate import agreements, kappa
from prlhf.judge.llm.cache import Answer
from prlhf.judge.llm.cost import Budget, Price, price_of
from prlhf.judge.statistics import length_controlled, samples_needed, sign_test, significance, summarize
from prlhf.judge.verdicts import Call, Decision, combine, position_bias

# ---- significance ----


def test_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(1, 2) == 1.0
    assert sign_test(0, 0) == 1.0
    assert sign_test(8, 2) == pytest.approx(2 * (45 + 10 + 1) / 1024)


def test_samples_needed() -> None:
    # ((1.95996 * 0.5 + 0.84162 * sqrt(0.6 * 0.4)) / 0.1)^2 = 193.8
    assert samples_needed(0.6) == samples_needed(0.4) == 194
    assert samples_needed(0.6, 2.0) == 388
    assert samples_needed(0.5) is None


@given(st.floats(0.501, 0.999), st.floats(1.0, 5.0))
def test_the_further_from_a_half_the_fewer_samples(rate: float, effect: float) -> None:
    more, fewer = samples_needed(rate, effect), samples_needed(min(rate + 0.05, 1.0), effect)
    assert more is not None
    assert fewer is not None
    assert fewer <= more


def test_a_small_sample_says_how_many_it_would_take() -> None:
    few = significance(summarize(np.array([1, 1, 1, 0, -1, -1]), list("aabbcc"), 500, 0))
    assert "6 samples are too few to tell A from B; if the true rate is 58.3 %, about" in few["note"]
    assert few["samples_needed"] > 6
    many = significance(summarize(np.ones(40, dtype=np.int64), [str(i % 8) for i in range(40)], 500, 0))
    assert (many["note"], many["sign_test_users"]) == ("", 2 / 2**8)
    even = significance(summarize(np.array([1, -1]), ["a", "b"], 500, 0))
    assert even["note"] == "2 samples cannot tell A from B: they are exactly even"


def kinds(value: Any) -> set[str]:
    """The names of the types in a result, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return {f"{type(value).__module__}.{type(value).__name__}"} | set().union(*map(kinds, inner))


def test_results_hold_plain_numbers() -> None:
    """No types of numpy, which Python shows as np.float64(1.0)."""
    summary = summarize(np.repeat([1, -1] * 10, 10), [f"u{i // 10}" for i in range(200)], 500, 0)
    found = kinds([summary, significance(summary)])
    assert {kind for kind in found if not kind.startswith("builtins.")} == set()


def test_users_who_are_of_one_mind_count_for_less_than_their_samples() -> None:
    """20 users with 10 equal samples each are worth 20 samples: the design effect is about 10."""
    outcomes = np.repeat([1, -1] * 10, 10)
    users = [f"u{i // 10}" for i in range(200)]
    assert significance(summarize(outcomes, users, 4000, 0))["design_effect"] == pytest.approx(10, rel=0.2)
    alone = significance(summarize(outcomes, ["one"] * 200, 500, 0))
    assert alone["design_effect"] == 1.0


# ---- length ----


def test_a_judge_of_length_alone_has_no_preference_at_equal_length() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(8, 10, 4000)
    outcomes = np.where(rng.random(4000) < 1 / (1 + np.exp(-3 * np.tanh(longer / 12.8))), 1, -1)
    found = length_controlled(outcomes, longer, np.arange(4000) % 40, 0)
    assert (outcomes > 0).mean() > 0.68
    assert found["low"] <= 0.5 <= found["high"]
    assert found["slope"] == pytest.approx(3, rel=0.15)


def test_a_judge_who_ignores_length_keeps_the_win_rate() -> None:
    rng = np.random.default_rng(1)
    outcomes = np.where(rng.random(4000) < 0.7, 1, -1)
    found = length_controlled(outcomes, rng.normal(5, 10, 4000), np.arange(4000) % 40, 0)
    assert found["rate"] == pytest.approx(0.7, abs=0.03)
    assert found["low"] < found["rate"] < found["high"]


def test_equal_lengths_change_nothing() -> None:
    outcomes = np.array([1] * 60 + [0] * 20 + [-1] * 20)
    found = length_controlled(outcomes, np.zeros(100), np.arange(100) % 10, 0)
    assert found["rate"] == pytest.approx(0.7, abs=0.002)  # the prior draws it a little towards a half
    assert found["slope"] == 0


def test_length_that_explains_everything_stays_finite() -> None:
    longer = np.array([5.0, 3, -2, -7, 1, -1] * 10)
    found = length_controlled(np.sign(longer).astype(np.int64), longer, np.arange(60) % 6, 0)
    assert 0 <= found["low"] <= found["rate"] <= found["high"] <= 1


# ---- decisions ----


def call(verdict: str, order: str = "ab") -> Call:
    first = {"A": order == "ab", "B": order == "ba"}.get(verdict)
    return Call(verdict, order, first)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ab", "ba", "verdict", "consistent"),
    [
        ("A", "A", "A", True),
        ("B", "B", "B", True),
        ("tie", "tie", "tie", True),
        ("A", "B", "tie", False),
        ("A", "tie", "tie", False),
        ("A", "unparsed", "unparsed", None),
        ("unparsed", "unparsed", "unparsed", None),
    ],
)
def test_two_orders_to_one_verdict(ab: str, ba: str, verdict: str, consistent: bool | None) -> None:
    decision = combine([call(ab), call(ba, "ba")])
    assert (decision.verdict, decision.consistent) == (verdict, consistent)


def test_position_bias() -> None:
    decisions = [combine([call(ab), call(ba, "ba")]) for ab, ba in ("AA", "AB", "AB", "BA", ("A", "tie"))]
    assert position_bias(decisions) == {
        "calls_that_chose": 9,
        "first": pytest.approx(6 / 9),
        "pairs_in_both_orders": 5,
        "inconsistent": 4,
        "first_twice": 2,
        "second_twice": 1,
    }
    assert position_bias([Decision("A", (Call("A"),))]) is None


# ---- agreement ----


def test_kappa_by_hand() -> None:
    pairs = [("A", "A")] * 20 + [("A", "B")] * 5 + [("B", "A")] * 10 + [("B", "B")] * 15
    assert kappa(pairs) == pytest.approx((0.7 - 0.5) / 0.5)  # Cohen's own example of 50 readings
    assert kappa([("A", "A")] * 3) is None
    assert kappa([]) is None


def test_agreement_leaves_out_what_has_no_verdict() -> None:
    def decided(verdicts: str) -> list[Decision]:
        names = {"A": "A", "B": "B", "t": "tie", "?": "unparsed"}
        return [Decision(names[v], (Call(names[v]),)) for v in verdicts]  # type: ignore[arg-type]

    (found,) = agreements({"x": decided("AABt?"), "y": decided("ABBAA")})
    assert found["judges"] == ["x", "y"]
    assert (found["pairs"], found["same"], found["same_where_both_chose"]) == (4, 0.5, pytest.approx(2 / 3))
    assert found["table"] == {"A/A": 1, "A/B": 1, "B/B": 1, "tie/A": 1}


# ---- prices ----


def test_prices(tmp_path: Path) -> None:
    shipped = price_of("gpt-4o", None, batch=False)
    assert shipped is not None
    assert shipped.of(1_000_000, 0) == shipped.input
    halved = price_of("gpt-4o", None, batch=True)
    assert halved is not None
    assert halved.output == shipped.output / 2
    assert price_of("unheard-of", None, batch=False) is None


@pytest.mark.parametrize(
    "content", ["[", "models: 3", "models: {m: {input: -1, output: 1}}", "models: {}\nextra: 1", None]
)
def test_a_price_file_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "prices.yaml").write_text(content)
    with pytest.raises(PrlhfError, match=r"cannot read the prices in .*prices\.yaml"):
        price_of("m", tmp_path / "prices.yaml", batch=False)


def test_a_budget_counts_what_is_under_way() -> None:
    budget = Budget(Price(input=1e6, output=1e6), max_cost=10, max_calls=None)
    assert budget.take(4)
    assert budget.take(4)
    assert not budget.take(4)
    budget.settle(4, Answer("x", 1, 1, 0.0))  # was cheaper than thought: 2 dollars
    assert budget.take(4)
    budget.settle(4, None)
    assert (budget.calls, budget.spent, budget.reserved) == (3, 2.0, 4.0)
