import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.judge.statistics import (
    CONVENTIONS,
    bootstrap_sums,
    mean_and_standard_error,
    rate,
    rate_with_interval,
    shares,
    shares_by_user,
    summarize,
    user_outcomes,
)

# anna: win, win, loss, tie; ben: tie, tie; zoe: win, loss; max: loss
OUTCOMES = np.array([1, 1, -1, 0, 0, 0, 1, -1, -1])
USERS = ["anna"] * 4 + ["ben"] * 2 + ["zoe"] * 2 + ["max"]
SAMPLES = st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from("abcde")), min_size=1, max_size=30)


def test_win_rates_by_hand() -> None:
    summary = summarize(OUTCOMES, USERS, resamples=200, seed=0)
    assert {key: summary[key] for key in ("n_samples", "n_users", "wins", "ties", "losses")} == {
        "n_samples": 9, "n_users": 4, "wins": 3, "ties": 3, "losses": 3,
    }  # fmt: skip
    rates = {name: block["rate"] for name, block in summary["per_sample"].items()}
    assert rates == pytest.approx({"tie_wins": 6 / 9, "tie_loses": 3 / 9, "tie_half": 4.5 / 9})
    # anna won (2 to 1), ben and zoe tied (0 to 0, 1 to 1), max lost
    rates = {name: block["rate"] for name, block in summary["per_user"].items()}
    assert rates == pytest.approx({"tie_wins": 3 / 4, "tie_loses": 1 / 4, "tie_half": 2 / 4})
    assert [(u["user_id"], u["n_samples"], u["verdict"]) for u in summary["users"]] == [
        ("anna", 4, "win"), ("ben", 2, "tie"), ("max", 1, "lose"), ("zoe", 2, "tie"),
    ]  # fmt: skip
    assert [u["rates"]["tie_half"] for u in summary["users"]] == [2.5 / 4, 0.5, 0.0, 0.5]
    assert [u["rates"]["tie_wins"] for u in summary["users"]] == [3 / 4, 1.0, 0.0, 0.5]
    assert summary["over_users"]["tie_loses"]["mean"] == pytest.approx((2 / 4 + 0 + 0 + 1 / 2) / 4)
    assert summary["clustered_by"] == "user"


def test_standard_error_by_hand_and_table_1_of_the_paper() -> None:
    assert mean_and_standard_error(np.array([1.0, 2.0, 3.0])) == {
        "mean": 2.0,
        "standard_error": pytest.approx(1 / np.sqrt(3)),
    }
    assert mean_and_standard_error(np.array([0.5])) == {"mean": 0.5, "standard_error": None}
    table_1 = np.array([91.67, 86.36, 100, 59.57, 96, 100])
    paper = mean_and_standard_error(table_1, ddof=0)
    assert (round(paper["mean"] or 0, 2), round(paper["standard_error"] or 0, 2)) == (88.93, 5.70)
    ours = mean_and_standard_error(table_1)["standard_error"]
    assert ours == pytest.approx((paper["standard_error"] or 0) * np.sqrt(6 / 5))


def test_user_outcomes_and_shares_by_hand() -> None:
    codes = np.array([0, 0, 1, 1, 2])
    outcomes = np.array([1, 0, 1, -1, -1])
    assert user_outcomes(outcomes, codes).tolist() == [1, 0, -1]
    assert shares(outcomes).tolist() == [0.4, 0.2]
    assert shares_by_user(outcomes, codes).tolist() == [[0.5, 0.5], [0.5, 0], [0, 0]]


def test_bootstrap_draws_as_many_rows_as_there_are_and_repeats_itself() -> None:
    table = np.column_stack([np.ones(5), np.arange(5.0)])
    sums = bootstrap_sums(table, resamples=4000, seed=3)
    assert sums.shape == (4000, 2)
    assert (sums[:, 0] == 5).all()
    # A draw of 5 from 0..4 has mean sum 10 and variance 5 * 2.
    assert sums[:, 1].mean() == pytest.approx(10, abs=0.2)
    assert sums[:, 1].var() == pytest.approx(10, rel=0.1)
    assert (bootstrap_sums(table, 4000, 3) == sums).all()
    assert (bootstrap_sums(table, 4000, 4) != sums).any()


def test_bounding_the_memory_does_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(12.0).reshape(6, 2)
    whole = bootstrap_sums(table, 50, 1)
    monkeypatch.setattr("prlhf.judge.statistics.BLOCK", 13)  # two resamples a block
    assert (bootstrap_sums(table, 50, 1) == whole).all()


def test_interval_is_the_percentiles() -> None:
    resampled = np.column_stack([np.linspace(0, 1, 101), np.zeros(101)])
    block = rate_with_interval(np.array([0.5, 0.2]), resampled, "tie_half")
    assert block == pytest.approx({"rate": 0.6, "low": 0.025, "high": 0.975})


def test_clustering_widens_the_interval_of_users_who_agree_with_themselves() -> None:
    outcomes = np.repeat([1, -1, 1, -1, 1, -1], 50)
    clustered = summarize(outcomes, [u for u in "abcdef" for _ in range(50)], 2000, 0)["per_sample"]["tie_half"]
    alone = summarize(outcomes, ["a"] * 300, 2000, 0)["per_sample"]["tie_half"]
    # One sample a user: half-width about 1.96 * sqrt(.25 / 300) = 0.057; six users: about 0.4.
    assert (alone["high"] - alone["low"]) / 2 == pytest.approx(0.057, abs=0.01)
    assert (clustered["high"] - clustered["low"]) / 2 > 0.3


def test_one_user_resamples_samples_and_says_so() -> None:
    summary = summarize(np.array([1] * 30 + [-1] * 10), ["anna"] * 40, 2000, 0)
    assert summary["clustered_by"] == "sample"
    block = summary["per_sample"]["tie_half"]
    assert block["rate"] == 0.75
    assert block["low"] == pytest.approx(0.75 - 0.134, abs=0.03)  # 1.96 * sqrt(.75 * .25 / 40)
    assert summary["per_user"]["tie_half"] == {"rate": 1.0, "low": 1.0, "high": 1.0}  # 20 of 40 is out of reach
    even = summarize(np.array([1, -1] * 20), ["anna"] * 40, 2000, 0)["per_user"]["tie_half"]
    assert even == {"rate": 0.5, "low": 0.0, "high": 1.0}
    assert summary["over_users"]["tie_half"] == {"mean": 0.75, "standard_error": None}


def test_one_sample() -> None:
    summary = summarize(np.array([0]), ["anna"], 10, 0)
    assert summary["per_sample"]["tie_half"] == {"rate": 0.5, "low": 0.5, "high": 0.5}
    assert summary["per_user"]["tie_wins"] == {"rate": 1.0, "low": 1.0, "high": 1.0}


@given(SAMPLES)
@settings(deadline=None)
def test_swapping_a_and_b_mirrors_the_rates(samples: list[tuple[int, str]]) -> None:
    outcomes, users = np.array([o for o, _ in samples]), [u for _, u in samples]
    ours, theirs = summarize(outcomes, users, 300, 0), summarize(-outcomes, users, 300, 0)
    mirror = {"tie_wins": "tie_loses", "tie_loses": "tie_wins", "tie_half": "tie_half"}
    for level in ("per_sample", "per_user"):
        for name, other in mirror.items():
            assert ours[level][name]["rate"] == pytest.approx(1 - theirs[level][other]["rate"])
            if ours["clustered_by"] == "user":  # same draws: the interval mirrors to rounding too
                assert ours[level][name]["low"] == pytest.approx(1 - theirs[level][other]["high"])


@given(SAMPLES)
@settings(deadline=None)
def test_conventions_are_ordered_and_linear(samples: list[tuple[int, str]]) -> None:
    outcomes, users = np.array([o for o, _ in samples]), [u for _, u in samples]
    summary = summarize(outcomes, users, 300, 0)
    for level in ("per_sample", "per_user"):
        wins, loses, half = (summary[level][name]["rate"] for name in CONVENTIONS)
        assert 0 <= loses <= half <= wins <= 1
        assert half == pytest.approx((wins + loses) / 2)
        ties = summary["ties"] / len(outcomes)
        if level == "per_sample":
            assert wins - loses == pytest.approx(ties)


@given(SAMPLES, st.integers(0, 5))
@settings(deadline=None)
def test_interval_contains_the_estimate(samples: list[tuple[int, str]], seed: int) -> None:
    summary = summarize(np.array([o for o, _ in samples]), [u for _, u in samples], 1000, seed)
    for level in ("per_sample", "per_user"):
        for block in summary[level].values():
            assert 0 <= block["low"] <= block["rate"] + 1e-12
            assert block["rate"] - 1e-12 <= block["high"] <= 1


@given(SAMPLES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_does_not_matter(samples: list[tuple[int, str]], shuffler: object) -> None:
    shuffled = list(samples)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    summaries = [summarize(np.array([o for o, _ in s]), [u for _, u in s], 100, 7) for s in (samples, shuffled)]
    assert summaries[0] == summaries[1]


def test_rate_takes_many_shares_at_once() -> None:
    assert rate(np.array([[0.2, 0.4], [1.0, 0.0]]), "tie_wins") == pytest.approx([0.6, 1.0])


def test_ten_thousand_users_take_seconds() -> None:
    rng = np.random.default_rng(0)
    summary = summarize(rng.integers(-1, 2, 20_000), [f"u{i % 10_000}" for i in range(20_000)], 500, 0)
    assert summary["n_users"] == 10_000
