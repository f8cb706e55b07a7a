"""`import prlhf`: it is fast, gives the same results as the commands, and writes and rates texts in memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import prlhf
from prlhf.config import GenerateConfig
from prlhf.generate.run import generate as write_responses
from prlhf.model.rewards import ResponseReader, load_rewards
from prlhf.responses import read_responses

PROMPT = "SUBREDDIT: r/pets\nTITLE: a cat\nPOST: my sister hid lamps.\nTL;DR: "


def test_importing_is_light() -> None:
    show = "import sys, prlhf; print(*sys.modules)"
    there = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "pydantic", "ray", "numpy", "pyarrow"}.isdisjoint(there)


@pytest.mark.slow
def test_importing_takes_a_fifth_of_a_second_at_most() -> None:
    def seconds(code: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    assert seconds("import prlhf") - seconds("pass") < 0.2


@pytest.mark.parametrize("before", ["", "import prlhf.train.run, prlhf.judge.run, prlhf.sweep, prlhf.generate"])
def test_packages_can_be_called_whether_imported_before_or_not(before: str, tmp_path: Path) -> None:
    code = (
        f"{before}\nimport prlhf\n"
        "for name in ('train', 'judge', 'generate', 'sweep', 'prepare', 'load'):\n"
        "    assert callable(getattr(prlhf, name)), name\n"
        "import prlhf.train.metrics as metrics\n"
        "assert prlhf.train.metrics is metrics\n"
        "try:\n    prlhf.train(alhpa=1)\n"
        "except prlhf.PrlhfError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "unknown key 'alhpa' for train; did you mean 'alpha'?" in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = prlhf.trian
    assert {"train", "load", "PrlhfError"} <= set(dir(prlhf))


def test_from_raw_data_to_a_judgement(tmp_path: Path) -> None:
    data = prlhf.prepare("demo", users=2, comparisons=6, out=tmp_path / "data")
    assert data.folder == tmp_path / "data"
    assert data.kept["train"] == 12
    assert data.users == {"seen": 2, "unseen": 0}
    run = prlhf.train(data, out=tmp_path / "run", user_tokens=1, max_steps=2, batch_size=4)
    assert (run.run, run.steps, run.objective) == (tmp_path / "run", 2, "dpo")
    assert isinstance(run.eval, prlhf.results.Accuracy)
    assert set(run.eval.accuracy_by_user) == {"1", "2"}
    assert run.model_extra is not None
    summary = json.loads((tmp_path / "run/results.json").read_text())
    assert run.loss == summary["loss"]
    again = prlhf.train(resume=True, out=tmp_path / "run")
    assert again.loss == run.loss
    options = {"max_prompts": 2, "max_new_tokens": 4}
    mine = prlhf.generate(run, users="1", out=tmp_path / "a.jsonl", **options)
    base = prlhf.generate(run, baseline="base", out=tmp_path / "b.jsonl", **options)
    assert (mine.responses, mine.new, base.responses) == (2, 2, 2)
    judged = prlhf.judge(mine, base, judge="rule:shorter", out=tmp_path / "judged")
    assert judged.wins + judged.ties + judged.losses == 2
    assert 0 <= judged.per_sample["tie_half"].low <= judged.per_sample["tie_half"].rate <= 1
    checked = prlhf.judge_checkpoint(run, data, out=tmp_path / "accuracy")
    assert checked.accuracy_by_user == run.eval.accuracy_by_user


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(prlhf.PrlhfError, match="resume needs the folder of the run; give it as out"):
        prlhf.train(resume=True)


def test_what_is_written_in_memory_is_what_the_command_writes(trained: Path, tmp_path: Path) -> None:
    model = prlhf.load(trained, device="cpu")
    out, prompts = tmp_path / "r.jsonl", tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{PROMPT}{i}"}) + "\n" for i in range(3)))
    options: dict[str, Any] = {"max_new_tokens": 6, "seed": 3}
    write_responses(trained, GenerateConfig(prompts=str(prompts), users=model.users[0], out=out, **options))
    expected = [row.response for row in read_responses(out)]
    assert model.generate([f"{PROMPT}{i}" for i in range(3)], user=model.users[0], **options) == expected
    assert model.generate(f"{PROMPT}1", user=model.users[0], **options) == expected[1]
    assert isinstance(model.generate(PROMPT, max_new_tokens=2), str)


def test_rewards_in_memory_are_those_of_scoring(trained: Path) -> None:
    model = prlhf.load(trained, device="cpu")
    responses = ["a cat.", "my sister hid lamps in a box.", "lamps."]
    found = model.reward(PROMPT, responses, user=model.users[0])
    policy, rewards = load_rewards(trained, "cpu")
    read = ResponseReader(policy)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        encoded = read.encode(PROMPT, model.users[0], responses[first], responses[second], "p")
        chosen, rejected = rewards([encoded], [1]).flatten().tolist()
        assert found[first] == pytest.approx(chosen, abs=1e-5)
        assert found[second] == pytest.approx(rejected, abs=1e-5)
    assert model.reward(PROMPT, responses) != found
    assert model.reward(PROMPT, []) == []


def test_who_is_unknown_is_named(trained: Path) -> None:
    model = prlhf.load(trained, device="cpu")
    for ask in (lambda: model.generate(PROMPT, user="nobody"), lambda: model.reward(PROMPT, ["a"], user="nobody")):
        with pytest.raises(prlhf.PrlhfError, match="user 'nobody' is unknown to"):
            ask()


def test_a_recipe_is_given_as_to_the_command(tmp_path: Path, prepared: Path, tiny_base: Path) -> None:
    """Settings win over its section; a key that they make useless is left out, as with an option."""
    recipe = {"train": {"user_model": "cluster", "k": 2, "beta": 0.3}, "cluster": {"verbose": True}}
    settings: dict[str, Any] = {"model": str(tiny_base), "out": tmp_path / "run", "max_steps": 2, "device": "cpu"}
    plan = prlhf.plan_training(str(prepared), recipe=recipe, user_model="individual", **settings)
    assert (plan.settings["beta"], plan.settings["k"], plan.steps, plan.train) == (0.3, 10, 2, 12)
    assert not (tmp_path / "run").exists()
    with pytest.raises(prlhf.PrlhfError, match="k = 3 is not used with user_model = individual"):
        prlhf.plan_training(str(prepared), recipe=recipe, user_model="individual", k=3, **settings)
    with pytest.raises(prlhf.PrlhfError, match="storage = x is not used with workers = 0"):
        prlhf.plan_training(str(prepared), cluster={"storage": "x"}, **settings)


def test_what_a_judge_would_be_sent_and_how_good_judges_are(prepared: Path, tmp_path: Path) -> None:
    asking: dict[str, Any] = {"judge": "llm:m", "protocol": "plain", "base_url": "http://127.0.0.1:9/v1"}
    plan = prlhf.plan_judging(calibrate=prepared, **asking)
    assert [one.model for one in plan.plan] == ["m"]
    shown = prlhf.judge_messages(1, calibrate=prepared, **asking)
    assert {call.order for call in shown.calls} == {"ab", "ba"}
    found = prlhf.calibrate(prepared, judge="rule:longer", out=tmp_path / "judged")
    assert found.calibration["rule:longer"].comparisons == found.summary()["calibration"]["rule:longer"]["comparisons"]
    with pytest.raises(prlhf.PrlhfError, match="calibrate names no data"):
        prlhf.calibrate(judge="rule:longer")
