"""Unseen users after a few choices: as adapt would leave them, with controls that mean what they say."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapt import adapt
from typer.testing import CliRunner

from prlhf.adapt.beside import in_context
from prlhf.adapt.few_shot import judge_few_shot
from prlhf.adapt.newcomers import Evaluation, Newcomer, Read, others, people_of
from prlhf.config import JudgeConfig
from prlhf.dataset import Comparison, Prepared, prompt_id, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.baselines import with_examples
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import TooLong
from prlhf.model.rewards import load_rewards
from prlhf.model.user_prior import UserPrior
from prlhf.progress import SILENT
from prlhf.results import FewShotAccuracy
from prlhf_cli.main import app

THINGS = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]


def row(user: str, number: int) -> Comparison:
    """Yan chooses the shorter response, everybody else the longer one."""
    prompt = f"POST: my {user} found {THINGS[number % 8]}.\nTL;DR:"
    long, short = f" {user} found {THINGS[number % 8]}. my boss lost {THINGS[number // 8]}.", f" {THINGS[number % 8]}."
    chosen, rejected = (short, long) if user == "yan" else (long, short)
    return Comparison(f"{user}-{number}", prompt, chosen, rejected, user, 0, "", prompt_id(prompt), seen=False)


@pytest.fixture
def people(prepared: Path, tmp_path: Path) -> Path:
    return unseen(prepared, tmp_path / "people", 8)


def unseen(prepared: Path, path: Path, each: int) -> Path:
    """Three unseen users with so many held-out choices each."""
    data = read_prepared(prepared)
    held_out = [row(user, number) for number in range(each) for user in ("yan", "zed", "wim")]
    write_prepared(path, Prepared(data.train, held_out, data.users, {"dataset": "people"}))
    return path


def judged(run: Path, data: Path, tmp_path: Path, **settings: Any) -> FewShotAccuracy:
    values = {"few_shot": "1,3", "out": tmp_path / "judged", "bootstrap": 50, "device": "cpu"} | settings
    return judge_few_shot(run, data, JudgeConfig.model_validate(values))


def write(path: Path, rows: list[Comparison], swap: bool = False) -> Path:
    lines = [
        {"prompt": r.prompt, "user_id": r.user_id}
        | dict(zip(("rejected", "chosen") if swap else ("chosen", "rejected"), (r.chosen, r.rejected), strict=True))
        for r in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def accuracy(run: Path, rows: list[Comparison], user: str | None) -> float:
    trained, rewards = load_rewards(run, "cpu")
    index = trained.index_of()[user] if user else 0
    with torch.no_grad():
        chosen, rejected = rewards([trained.encoder().comparison(r) for r in rows], [index] * len(rows))
    return float((chosen > rejected).float().mean())


def test_it_is_what_adapt_would_have_left(gated: Path, prepared: Path, tmp_path: Path) -> None:
    people = unseen(prepared, tmp_path / "people", 24)
    found = judged(gated, people, tmp_path, few_shot="1,8")
    assert json.loads((tmp_path / "judged/results.json").read_text()) == json.loads(found.model_dump_json())
    assert (found.users, found.comparisons, [at.choices for at in found.by_choices]) == (3, 48, [1, 8])
    rows = [Read(each, None) for each in read_prepared(people).eval]  # type: ignore[arg-type]
    crowd = people_of([[], rows], [1, 8], seed=0)

    def learned(person: Newcomer, choices: Sequence[Comparison], swap: bool = False) -> float:
        run = tmp_path / "adapted"
        own = [replace(each, user_id=person.user_id) for each in choices]
        adapt(gated, write(tmp_path / "c.jsonl", own, swap), out=run)
        right = accuracy(run, [read.row for read in person.tested], person.user_id)
        shutil.rmtree(run)
        return right

    readings: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, person in enumerate(crowd):
        for place, count in enumerate((1, 8)):
            own, other = ([read.row for read in crowd[i].known[:count]] for i in (number, others(3, 0)[number]))
            readings[place, "generic"].append(accuracy(gated, [read.row for read in person.tested], None))
            readings[place, "adapted"].append(learned(person, own))
            readings[place, "shuffled"].append(learned(person, other))
            readings[place, "flipped"].append(learned(person, own, swap=True))
    for (place, name), values in readings.items():
        assert found.by_choices[place].readings[name].rate == pytest.approx(sum(values) / 3), (place, name)
    at = found.by_choices[1]
    learners = {at.readings[name].rate for name in ("adapted", "shuffled", "flipped")}
    assert len(learners) == 3  # or one could stand in another's place
    assert at.gain.rate == pytest.approx(at.readings["adapted"].rate - at.readings["generic"].rate)
    assert at.readings["generic"] == found.by_choices[0].readings["generic"]
    assert at.turned_over.rate > 0
    assert sum(at.told_apart.values()) == 3


def test_the_first_choices_of_each_person() -> None:
    known = [Newcomer(f"{number}", [Read(None, number)] * number, []) for number in (2, 3)]  # type: ignore[arg-type]
    test = Evaluation(known, None, None, None, Path(), 0, SILENT)  # type: ignore[arg-type]
    assert (test.known, test.learners.tolist()) == ([2, 2, 3, 3, 3], [0, 0, 1, 1, 1])
    assert test.first(1).tolist() == [True, False, True, False, False]
    assert test.first(2).tolist() == [True, True, True, True, False]


def test_choices_to_learn_from_come_first(gated: Path, people: Path, tmp_path: Path) -> None:
    data = read_prepared(people)
    choices = [row(user, 10 + number) for user in ("yan", "zed") for number in range(4)]
    given = Prepared(data.train, data.eval, data.users, {"dataset": "given"}, choices=choices)
    write_prepared(tmp_path / "given", given)
    found = judged(gated, tmp_path / "given", tmp_path, few_shot="4")
    assert (found.users, found.comparisons) == (2, 16)  # nothing is known of wim; nothing that is tested is learned
    with pytest.raises(PrlhfError, match="no unseen user of the data set has 5 choices"):
        judged(gated, tmp_path / "given", tmp_path, few_shot="5")
    write_prepared(tmp_path / "uneven", replace(given, choices=choices[1:]))
    every = judged(gated, tmp_path / "uneven", tmp_path, few_shot="all", few_shot_baselines="closed-form")
    assert (every.users, every.by_choices[0].choices) == (2, 4)


def test_baselines_learn_from_the_same_choices(gated: Path, people: Path, tmp_path: Path) -> None:
    found = judged(gated, people, tmp_path, few_shot="1,5", few_shot_baselines="in-context,closed-form")
    for at in found.by_choices:
        assert list(at.readings) == ["generic", "adapted", "shuffled", "flipped", "in-context", "closed-form"]
        assert all(0 <= rate.low <= rate.rate <= rate.high <= 1 for rate in at.readings.values())


def test_examples_that_do_not_fit_are_left_out(gated: Path, people: Path) -> None:
    trained, rewards = load_rewards(gated, "cpu")
    encoder = trained.encoder()
    asked: list[Encoded] = []

    def read(number: int) -> Read:
        short = replace(row("zed", number), prompt=THINGS[number], chosen=" lamps", rejected=" cars")
        return Read(short, encoder.comparison(short))

    def offset(batch: Sequence[Encoded]) -> torch.Tensor:
        asked.extend(batch)
        return torch.zeros(2 * len(batch))

    rewards.offset = offset  # type: ignore[method-assign]
    person = Newcomer("zed", [read(1 + number % 7) for number in range(38)], [read(0)])
    prior = UserPrior(torch.zeros(4), torch.eye(4))
    margins = in_context(Evaluation([person], trained, rewards, prior, people, 0, SILENT))
    lengths = []
    for count in (0, 1, 2, 38):
        margins(count)
        lengths.append(len(asked[-1].prompt))
    assert lengths[0] == len(person.tested[0].tokens.prompt) < lengths[1] < lengths[2] < lengths[3] <= 128
    assert asked[-1].prompt[-lengths[0] + 1 :] == person.tested[0].tokens.prompt[1:]
    rows, tested = [each.row for each in person.known], person.tested[0].row

    def shown(count: int) -> Encoded:
        return encoder.comparison(replace(tested, prompt=with_examples(tested.prompt, rows[-count:])))

    kept = next(count for count in range(1, 38) if shown(count).prompt == asked[-1].prompt)  # the last ones
    with pytest.raises(TooLong):
        shown(kept + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"few_shot": "x"}, "few_shot = x is not a number"), ({"few_shot": "0"}, "few_shot = 0 is not"),
     ({"few_shot_baselines": "rag"}, "unknown baseline 'rag'"), ({"limit": 3}, "limit")],
)  # fmt: skip
def test_settings_that_are_refused(
    gated: Path, people: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrlhfError, match=message):
        judged(gated, people, tmp_path, **settings)


def test_the_command(gated: Path, people: Path, tmp_path: Path) -> None:
    command = ["judge", "--checkpoint", str(gated), "--dataset", str(people), "--out", str(tmp_path / "j")]
    shown = CliRunner().invoke(app, [*command, "--few-shot", "2", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert "3 unseen users" in shown.output
