"""A trial of a sweep: one training run, taken up where an earlier try of it stopped; then its responses, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.generate.run import generate
from prlhf.judge.run import judge_responses
from prlhf.progress import SILENT, Progress
from prlhf.sweep.settings import Settings
from prlhf.train.loop import Report
from prlhf.train.on_ray import train_on_ray
from prlhf.train.run import train

BASE = "base.jsonl"  # in the sweep's folder: what the base writes, which all trials are judged against


def run_trial(settings: Settings, cluster: ClusterConfig, out: Path, report: Report | None = None) -> dict[str, Any]:
    """Train into `settings.train.out`, and judge where it says so; returns the metrics by name. `out`: the sweep's."""
    results = _train(settings, cluster, report)
    scores = results.pop("eval", None) or {}
    reference = results.pop("reference", None) or {}
    results |= {f"eval/{name}": value for name, value in scores.items() if isinstance(value, float)}
    results |= {f"reference_{name}": count for name, count in reference.items()}
    if settings.judge:
        results |= _judge(settings, out)
    return as_json(results)


def _train(settings: Settings, cluster: ClusterConfig, report: Report | None) -> dict[str, Any]:
    config = settings.train
    resume = (config.folder / "recipe.yaml").exists()
    if not cluster.workers:
        return train(config, resume, SILENT, report)
    return train_on_ray(config, cluster, resume, SILENT, report)


def _judge(settings: Settings, out: Path) -> dict[str, Any]:
    """Write for the held-out prompts with the trained model, and compare with what all trials are compared with."""
    assert settings.generate
    assert settings.judge
    folder = settings.train.folder
    written = settings.generate.model_copy(update={"out": folder / "responses.jsonl"})
    generate(folder, written, SILENT)
    against = out / BASE if settings.against == "base" else Path(settings.against)
    judged = judge_responses(
        folder / "responses.jsonl", against, settings.judge.model_copy(update={"out": folder / "judged"}), SILENT
    )
    rate = judged["per_sample"]["tie_half"]
    return {
        "judge/winrate": rate["rate"],  # of samples; a tie is half a win
        "judge/winrate_low": rate["low"],
        "judge/winrate_high": rate["high"],
        "judge/winrate_by_user": judged["over_users"]["tie_half"]["mean"],  # every user counts the same
        "judge/ties": judged["ties"] / judged["n_samples"],
    }


def write_base(settings: Settings, out: Path, progress: Progress = SILENT) -> int:
    """What the base alone writes for the trials' prompts into `out`/base.jsonl; how many responses were new."""
    assert settings.generate
    asked: GenerateConfig = settings.generate.model_copy(
        update={
            "out": out / BASE,
            "baseline": "base",
            "model": settings.train.model,
            "dataset": settings.generate.dataset or settings.train.dataset,
            "users": "generic",
            "best_of": 1,
            "reward": None,
        }
    )
    return int(generate(None, asked, progress)["new"])


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result as it will be read back, so that resumed and uninterrupted sweeps report the same."""
    plain = to_json(
        result, inf_nan_mode="null", fallback=lambda value: value.item() if hasattr(value, "item") else str(value)
    )
    return from_json(plain)  # type: ignore[no-any-return]
