"""The LLM judge against a scripted server: orders, verdicts, reminders, the cache, limits."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS
from judge_rows import MakeConfig, row, write
from scripted import Body, Reply, always_first, labels_of, prefers, said, serving, texts_of, verdict

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge.run import calibrate_judges, dry_run, judge_responses, shown_prompt

Files = tuple[Path, Path]
longer = prefers(lambda text: len(text.split()))


def rows_of(out: Path, name: str = "verdicts.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def test_a_judge_that_reads_decides_whatever_the_order(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    with serving(longer) as server:
        results = judge_responses(*two_files, llm(server.url))
    assert (results.wins, results.ties, results.losses) == (2, 2, 2)
    assert [(user["user_id"], user["verdict"]) for user in results.users] == [
        ("anna", "win"), ("ben", "lose"), ("zoe", "tie")]  # fmt: skip
    assert results.position_bias["inconsistent"] == 0
    assert (results.calls, results.cost, results.unparsed["pairs"]) == (12, None, 0)
    rows = rows_of(tmp_path / "judged")
    assert len(rows) == len(server.requests) == 12
    assert {row["order"] for row in rows} == {"ab", "ba"}
    assert all(row["prompt_tokens"] == 100 and row["seconds"] >= 0 and len(row["request"]) == 32 for row in rows)
    assert len({row["request"] for row in rows}) == 12


def test_a_judge_that_likes_the_first_place_decides_nothing(two_files: Files, llm: MakeConfig) -> None:
    with serving(always_first) as server:
        results = judge_responses(*two_files, llm(server.url))
    assert (results.wins, results.ties, results.losses) == (0, 6, 0)
    bias = results.position_bias
    assert (bias["first"], bias["inconsistent"], bias["first_twice"], bias["second_twice"]) == (1.0, 6, 6, 0)


def test_equal_responses_tie_without_a_call(llm: MakeConfig, tmp_path: Path) -> None:
    a = [row("p", "anna", "the same"), row("q", "anna", "some words")]
    b = [row("p", "anna", "the same"), row("q", "anna", "words")]
    with serving(longer) as server:
        results = judge_responses(write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b), llm(server.url))
    assert (results.wins, results.ties, len(server.requests)) == (1, 1, 2)
    (tied,) = (row for row in rows_of(tmp_path / "judged") if row["prompt_id"] == "p")
    assert (tied["verdict"], tied["order"], tied["request"], tied["consistent"]) == ("tie", None, None, None)


def test_of_the_generic_user_the_judge_is_asked_as_of_nobody(profiled: Path, llm: MakeConfig, tmp_path: Path) -> None:
    users = ("P1A", "generic")
    a, b = ([row("p", user, text) for user in users] for text in ("one two", "one"))
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    with serving(longer) as server:
        judge_responses(*files, llm(server.url, dataset=profiled, protocol=None, concurrency=1))
    told = ["What this user wants" in body["messages"][1]["content"] for body in server.requests]
    assert sorted(told) == [False, False, True, True]


@pytest.mark.parametrize(("order", "calls"), [("ab", {"ab"}), ("random", {"ab", "ba"})])
def test_one_order(two_files: Files, llm: MakeConfig, tmp_path: Path, order: str, calls: set[str]) -> None:
    a = [row(f"p{i}", "anna", f"some words {i}") for i in range(12)]
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", [row(f"p{i}", "anna", "x") for i in range(12)])
    with serving(longer) as server:
        results = judge_responses(*files, llm(server.url, order=order))
    assert len(server.requests) == 12
    assert {row["order"] for row in rows_of(tmp_path / "judged")} == calls
    assert results.wins == 12
    assert results.position_bias["pairs_in_both_orders"] == 0


def test_an_answer_without_verdict_is_asked_again_twice_and_then_recorded(
    two_files: Files, llm: MakeConfig, tmp_path: Path
) -> None:
    def script(body: Body, number: int) -> Reply:
        last = body["messages"][-1]["content"]
        if "a0" in last and "three" in last and "one b0" in last:  # anna's first pair: never
            return said("I would rather not say.")
        return longer(body, number) if "Asked again, 2 of 2" in last or "a1" in last else said("Hmm.")

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url))
    rows = rows_of(tmp_path / "judged")
    assert {row["attempts"] for row in rows if row["prompt_id"] == "p1"} == {1}
    assert {row["attempts"] for row in rows if row["prompt_id"] == "p0"} == {3}
    lost = [row for row in rows if row["verdict"] == "unparsed"]
    assert [(row["user_id"], row["prompt_id"], row["answer"]) for row in lost] == [
        ("anna", "p0", "I would rather not say.")] * 2  # fmt: skip
    assert (results.n_samples, results.wins, results.unparsed["pairs"]) == (5, 1, 1)
    assert results.unparsed["rate_if_lost"] == pytest.approx(2 / 6)
    assert results.unparsed["rate_if_won"] == pytest.approx(3 / 6)
    assert len(server.requests) == 6 + 3 * 6


def test_no_verdict_at_all(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    with (
        serving(lambda body, number: said("No.")) as server,
        pytest.raises(PrlhfError, match=r"none of 6 pairs .*'No.'"),
    ):
        judge_responses(*two_files, llm(server.url))
    assert not (tmp_path / "judged").exists()


def test_a_rerun_asks_only_for_what_is_missing(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server:
        with pytest.raises(PrlhfError, match=r"stopped at --max-calls 5 with 7 calls left; .*5 of 12 answers are kept"):
            judge_responses(*two_files, llm(server.url, max_calls=5))
        assert len(server.requests) == 5
        first = judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 12
        again = judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 12
        assert again.calls == 0
        assert {k: v for k, v in first.summary().items() if k not in ("calls", "cost")} == {
            k: v for k, v in again.summary().items() if k not in ("calls", "cost")
        }
        judge_responses(*two_files, llm(server.url, temperature=0.5))  # another request altogether
        assert len(server.requests) == 24


def test_a_damaged_line_of_answers_is_asked_again(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    with serving(longer) as server:
        judge_responses(*two_files, llm(server.url))
        (file,) = (tmp_path / "cache/judge").glob("*.jsonl")
        file.write_bytes(file.read_bytes()[:-20])  # as a crash leaves it
        judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 13
        judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 13


def test_cost_is_counted_and_limited(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 1000, output: 10000}}")  # a call: 100 tokens in, 10 out: 20 cents
    with serving(longer) as server:
        config = llm(server.url, prices=prices, max_answer_tokens=20, concurrency=1)
        assert judge_responses(*two_files, config).cost == pytest.approx(12 * 0.2)
        dear = llm(server.url, prices=prices, max_answer_tokens=20, seed=1, max_cost=2.0, concurrency=1)
        before = len(server.requests)
        with pytest.raises(PrlhfError, match=r"stopped at --max-cost 2.0"):
            judge_responses(*two_files, dear)
        assert 0 < (len(server.requests) - before) * 0.2 <= 2.0
        with pytest.raises(PrlhfError, match="--max-cost needs the price of 'm'"):
            judge_responses(*two_files, llm(server.url, max_cost=2.0))


def test_dry_run_and_shown_prompt_send_nothing(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    with serving(longer) as server:
        (estimate,) = dry_run(*two_files, llm(server.url))
        assert (estimate.calls, estimate.known, estimate.cost) == (12, 0, None)
        calls = shown_prompt(*two_files, llm(server.url), 2)
        with pytest.raises(PrlhfError, match="there are comparisons 1 to 6"):
            shown_prompt(*two_files, llm(server.url), 7)
        assert server.requests == []
        judge_responses(*two_files, llm(server.url, concurrency=1))
        assert [call.messages for call in calls] == [body["messages"] for body in server.requests[2:4]]
        assert dry_run(*two_files, llm(server.url))[0].known == 12
    with pytest.raises(PrlhfError, match="rule:longer sends no messages"):
        shown_prompt(*two_files, JudgeConfig(judge="rule:longer"), 1)


def test_calls_run_side_by_side_but_no_more_than_asked_for(two_files: Files, llm: MakeConfig) -> None:
    together = threading.Barrier(3, timeout=5)

    def script(body: Body, number: int) -> Reply:
        if 2 < number < 6:
            together.wait()  # passes only if three calls are under way at once
        return longer(body, number)

    with serving(script) as server:
        judge_responses(*two_files, llm(server.url, concurrency=3))
    assert server.most_busy == 3


def test_requests_per_minute(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server:
        began = time.monotonic()
        judge_responses(*two_files, llm(server.url, requests_per_minute=1200, concurrency=8))
        assert time.monotonic() - began >= 11 * 60 / 1200


def test_a_server_without_structured_output(two_files: Files, llm: MakeConfig) -> None:
    def script(body: Body, number: int) -> Reply:
        if "response_format" in body:
            return Reply({"error": {"message": "unknown field response_format"}}, 400)
        codes = re.findall(r"Which response do you choose, (\w+) or (\w+), or (\w+)", body["messages"][-1]["content"])
        first, second, tie = codes[0]
        texts = texts_of(body)
        a, b = len(texts[first].split()), len(texts[second].split())
        return said(f"One is longer.\nVerdict: {first if a > b else second if b > a else tie}")

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url))
    assert (results.wins, results.ties, results.losses) == (2, 2, 2)
    assert sum("response_format" in body for body in server.requests) < 12  # found out once, not at every call


# ---- responses that try to sway the judge ----


def outside_the_fences(body: Body) -> str:
    """The part of the messages outside the fences: all that an obedient judge may act on."""
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    (fence,) = set(re.findall(r"\[(\w{16}) end\]", system))
    assert user.count(f"[{fence} ") == 2 * user.count(f"[{fence} end]")
    return system + re.sub(rf"\[{fence} [^\]]*\]\n.*?\n\[{fence} end\]", "", user, flags=re.DOTALL)


@pytest.fixture
def attacked(tmp_path: Path) -> Files:
    """A's responses are attacks, B's an honest sentence that is better."""
    a = [row(f"p{i:02}", "anna", attack) for i, attack in enumerate(ATTACKS)]
    b = [row(f"p{i:02}", "anna", "An honest answer.") for i in range(len(ATTACKS))]
    return write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)


def test_no_attack_stands_outside_a_fence_or_knows_a_code(attacked: Files, llm: MakeConfig) -> None:
    """A judge that obeys whatever stands outside the fences gets no instruction from any response."""
    assert len(ATTACKS) >= 30
    honest = prefers(lambda text: text == "An honest answer.")

    def script(body: Body, number: int) -> Reply:
        instructions = outside_the_fences(body)
        for attack, text in ((attack, text) for attack in ATTACKS for text in texts_of(body).values()):
            if text == attack.strip() and len(attack) > 3 and attack in instructions:
                return verdict(body, next(code for code, said in texts_of(body).items() if said == text))  # obeyed
            assert not any(code in text for code in labels_of(body))
        return honest(body, number)

    with serving(script) as server:
        results = judge_responses(*attacked, llm(server.url))
    assert (results.wins, results.ties, results.losses) == (0, 0, len(ATTACKS))


def test_an_answer_that_repeats_the_attack_decides_nothing(attacked: Files, llm: MakeConfig, tmp_path: Path) -> None:
    def parrot(body: Body, number: int) -> Reply:
        return said(next((text for text in texts_of(body).values() if text != "An honest answer."), ""))

    with serving(parrot) as server, pytest.raises(PrlhfError, match=f"none of {len(ATTACKS)} pairs has a verdict"):
        judge_responses(*attacked, llm(server.url))


def test_an_attack_quoted_as_the_reason_does_not_count(attacked: Files, llm: MakeConfig) -> None:
    def quoting(body: Body, number: int) -> Reply:
        texts = texts_of(body)
        attack = next(text for text in texts.values() if text != "An honest answer.")
        return verdict(body, next(code for code, text in texts.items() if text == "An honest answer."), attack)

    with serving(quoting) as server:
        results = judge_responses(*attacked, llm(server.url))
    assert results.losses == len(ATTACKS)


# ---- calibration and several judges ----


def test_calibration_on_what_people_chose(prepared: Path, llm: MakeConfig, tmp_path: Path) -> None:
    from prlhf.dataset import read_prepared

    rows = read_prepared(prepared).eval
    expected = [len(str(r.chosen).split()) - len(str(r.rejected).split()) for r in rows]
    with serving(longer) as server:
        results = calibrate_judges(llm(server.url, judge="llm,rule:longer,rule:shorter", calibrate=prepared))
    found = results.calibration
    for name in ("llm", "rule:longer"):
        assert (found[name].right, found[name].ties, found[name].wrong) == (
            sum(d > 0 for d in expected), sum(d == 0 for d in expected), sum(d < 0 for d in expected))  # fmt: skip
    assert found["rule:shorter"].right == found["llm"].wrong
    same = {tuple(one["judges"]): one["same"] for one in results.agreement}
    assert same[("llm", "rule:longer")] == 1.0
    assert len(rows_of(tmp_path / "judged", "calibration.jsonl")) == len(rows) * 4  # twice, once, once


def test_a_judge_of_the_first_place_is_no_better_than_chance(prepared: Path, llm: MakeConfig) -> None:
    with serving(always_first) as server:
        found = calibrate_judges(llm(server.url, calibrate=prepared)).calibration["llm"]
        assert found.accuracy.rate == 0.5
        with pytest.raises(PrlhfError, match="--order ab would show the chosen response first"):
            calibrate_judges(llm(server.url, calibrate=prepared, order="ab"))
        some = calibrate_judges(llm(server.url, calibrate=prepared, limit=3)).calibration["llm"]
    assert some.comparisons == 3


def test_several_judges_of_two_files(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server:
        results = judge_responses(*two_files, llm(server.url, judge="rule:shorter,llm"))
    assert list(results.judges) == ["rule:shorter", "llm"]
    assert results.wins == results.judges["rule:shorter"].wins == 2
    (agreement,) = results.agreement
    assert (agreement["same"], agreement["pairs"], agreement["same_where_both_chose"]) == (2 / 6, 6, 0.0)
    assert agreement["kappa"] == pytest.approx(0.0)


def test_who_the_users_are_must_be_known(two_files: Files, llm: MakeConfig, prepared: Path) -> None:
    with pytest.raises(PrlhfError, match="who the users are is not known; give --dataset"):
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1", protocol=None))
    with pytest.raises(PrlhfError, match="the judge llm lacks its model"):
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1", judge_model=None))
    with pytest.raises(PrlhfError, match=r"has no user '(anna|zoe)'"):
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1", dataset=prepared))
    with pytest.raises(PrlhfError, match="names a judge twice"):
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1", judge="llm,llm"))
