"""Folders that prlhf writes and reads: prepared data, runs, models, bases, caches and partial output."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz import damage
from benchmarks.fuzz.cases import Case, Wrong
from benchmarks.fuzz.kinds.material import Material


def prepared(rng: Random, work: Path, material: Material) -> Case:
    """Damaged data, given to every reader of prepared data."""
    from prlhf.dataset import read_prepared

    good = rng.choice([material.data, material.talks])
    place = damage.fresh(good, work / "data")
    how = damage.folder(rng, place)
    name, use = rng.choice(USES)
    return Case(f"{good.name}: {how}, then {name}", lambda: (read_prepared(place), use(place, material)), [place])


def _plan(place: Path, material: Material) -> Any:
    from prlhf.train.dry_run import plan

    return plan(material.train(place.parent / "planned", dataset=str(place)))


def _calibrate(place: Path, material: Material) -> Any:
    from prlhf.config import JudgeConfig
    from prlhf.judge.run import dry_run

    config = JudgeConfig(judge="llm:m", base_url="http://127.0.0.1:9/v1", calibrate=place, dataset=place)
    return dry_run(None, None, config)


def _choose(place: Path, material: Material) -> Any:
    from prlhf.dataset import read_prepared
    from prlhf.generate.baselines import baseline_of
    from prlhf.generate.pairs import select
    from prlhf.generate.readers import known_readers

    data = read_prepared(place)
    seen = {user: index for index, user in enumerate(data.user_ids, start=1)}
    for prompts, users in (("eval", "all"), ("own", "all"), ("judging", "seen,unseen")):
        config = material.write(place.parent / "out.jsonl", prompts=prompts, users=users)
        select(known_readers(seen, {}, data), baseline_of(config, data), config)


def _chosen(place: Path, material: Material) -> Any:
    from prlhf.generate.run import generate

    out = place.parent / "chosen.jsonl"
    return generate(None, material.write(out, baseline="chosen", dataset=str(place), users="all"))


def _accuracy(place: Path, material: Material) -> Any:
    from prlhf.config import JudgeConfig
    from prlhf.judge.accuracy import judge_checkpoint

    return judge_checkpoint(material.run, place, JudgeConfig(device="cpu", bootstrap=5, out=place.parent / "judged"))


USES: list[tuple[str, Callable[[Path, Material], Any]]] = [
    ("train --dry-run", _plan),
    ("judge --calibrate", _calibrate),
    ("choice of pairs", _choose),
    ("chosen responses", _chosen),
    ("judge --checkpoint", _accuracy),
]


def checkpoint(rng: Random, work: Path, material: Material) -> Case:
    """A damaged model, loaded and asked for a response; in a third of the cases, the checksums fit the damage."""
    from prlhf.generate.run import generate
    from prlhf.judge.reward import RewardJudge

    good = rng.choice([material.run, material.run, material.reward, material.per_user])
    place = damage.fresh(good, work / "run")
    pattern = rng.choice(["*", "*.safetensors", "prlhf.json", "users.json", "adapter_config.json", "per_user.json"])
    how = damage.folder(rng, place, pattern)
    if rng.random() < 0.5:
        how += f"; {_sum_again(place)}"
    out = work / "out.jsonl"
    if good is material.reward:
        from prlhf.config import JudgeConfig

        return Case(f"reward model: {how}", lambda: RewardJudge(str(place), JudgeConfig(device="cpu")), [place])
    return Case(
        f"{good.name}: {how}", lambda: generate(place, material.write(out)), [place], [out], lambda said: _is_there(out)
    )


def _sum_again(place: Path) -> str:
    """Write new checksums, so that the damage is found only when the file is used."""
    for about in place.rglob("prlhf.json"):
        try:
            told = json.loads(about.read_text())
            for name in told["sha256"]:
                told["sha256"][name] = hashlib.sha256((about.parent / name).read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        about.write_text(json.dumps(told))
    return "summed again"


def _is_there(out: Path) -> None:
    from prlhf.responses import read_responses

    if not read_responses(out):
        raise Wrong("no responses")


def base(rng: Random, work: Path, material: Material) -> Case:
    from prlhf.model.base import load_base, load_skeleton

    place = damage.fresh(material.base, work / "base")
    how = damage.folder(rng, place, rng.choice(["*", "*.json", "*.safetensors"]))
    if rng.random() < 0.5:
        return Case(f"skeleton: {how}", lambda: load_skeleton(str(place), _fp32(), False), [place])
    return Case(f"base: {how}", lambda: load_base(str(place)), [place])


def _fp32() -> Any:
    import torch

    return torch.float32


def run(rng: Random, work: Path, material: Material) -> Case:
    """A damaged run to continue, finished or not."""
    from prlhf.recipes import resolve
    from prlhf.train.run import train
    from prlhf.train.run_folder import saved_config

    good = rng.choice([material.stopped, material.stopped, material.run])
    place = damage.fresh(good, work / "run")
    patterns = [
        "*",
        "recipe.yaml",
        "metrics.jsonl",
        "results.json",
        "state.json",
        "sha256.json",
        "*.pt",
        "*.safetensors",
    ]
    how = damage.folder(rng, place, rng.choice(patterns)) or damage.folder(rng, place)

    def go_on() -> Any:
        config = resolve(type(material.train(place)), saved_config(place).model_dump())
        if (config.max_steps or 99) > 5 or config.model != str(material.base):  # a different run, which may be long
            config = resolve(type(config), config.model_dump(), {"max_steps": 3, "model": str(material.base)})
        return train(config, resume=True)

    return Case(f"{good.name}: {how}", go_on, [material.data, material.base], [], lambda said: _finished(place))


def _finished(place: Path) -> None:
    from prlhf.model.checkpoint import model_folder, read_about

    read_about(model_folder(place))
    if list(place.rglob("*.partial")):
        raise Wrong("partial files are left")


def cache(rng: Random, work: Path, material: Material) -> Case:
    """Damaged reference log-probs, which are either used unchanged or computed again."""
    import numpy as np

    from prlhf.model.base_cache import BaseCache

    place = work / "cache"
    values = {bytes([number]) * 16: float(number) for number in range(1, 40)}
    for start in (1, 20):
        BaseCache(place).add({key: v for key, v in values.items() if start <= v < start + 20})
    how = damage.folder(rng, place)

    def read() -> None:
        cache = BaseCache(place)
        found = cache.find(list(values))
        wrong = ~np.isnan(found) & (found != np.array(list(values.values())))
        if wrong.any():
            raise Wrong(f"other values: {found[wrong]}")
        cache.add({b"\xff" * 16: 1.0})

    return Case(how, read)


def output(rng: Random, work: Path, material: Material) -> Case:
    """Damaged responses of a finished or killed run, which are continued."""
    from prlhf.generate.run import generate

    name = rng.choice(["responses.jsonl", "responses.parquet", "shards", "partial"])
    out = work / "here" / ("responses.jsonl" if name == "partial" else name)
    shutil.copytree(material.responses, work / "here")
    if name == "partial":
        out.rename(out.with_name(out.name + ".partial"))
        how = damage.file(rng, out.with_name(out.name + ".partial"))
    elif name == "shards":
        how = damage.folder(rng, out)
    else:
        how = damage.file(rng, out)
    more = rng.choice([{}, {"users": "ann,bob,generic"}])
    options = {"block": 2} | more
    # a damaged marker is repaired before other files are checked
    place = [path for path in (work / "here").rglob("*") if path.name != "prlhf.json" and not path.is_dir()]
    return Case(
        f"{name}: {how} {more}",
        lambda: generate(material.run, material.write(out, **options)),
        [],
        place,
        lambda said: _is_there(out),
    )
