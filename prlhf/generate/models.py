"""Whose weights write the responses: a run's, those of one adapter per user, or a base model's alone.

`open_writer` loads them; `open_plan` knows as much of them as it takes to plan the jobs that others write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.generate.decoding import Job
from prlhf.generate.pairs import named_users
from prlhf.kernels import speed_up
from prlhf.model.base import load_base, pick_device, pick_dtype
from prlhf.model.checkpoint import Policy, load_policy, model_folder, read_about, reference_model
from prlhf.model.per_user import is_per_user, read_per_user, run_of
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.skeleton import load_skeleton
from prlhf.model.user_index import read_users
from prlhf.model.users import build_user_model
from prlhf.model.weights import check_weights, load_weights


@dataclass(frozen=True)
class Writer:
    """A policy, and which of its parts write."""

    policy: Policy
    weights: str  # a digest of the weights; rows that others wrote are not mixed in
    base: bool = False  # the base alone: adapter and user tokens off
    adapters: dict[int, Path] = field(default_factory=dict)  # user index -> run, where every user has one


def open_writer(run: Path | None, config: GenerateConfig, users: Sequence[str]) -> Writer:
    """Load what writes for `config`: `run`, or its base for a baseline, or without a run the base `config.model`.

    `users`: ids of the data's seen users; a base model knows none of its own.
    """
    base = config.baseline != "none"
    if run is None:
        if not base or config.model is None:
            raise PrlhfError(
                "no run is named",
                "give the folder of a finished run; for --baseline base, oracle or in-context a --model will do",
            )
        policy = _base_alone(config.model, config, users)
        return Writer(policy, policy.base.fingerprint, base)
    if is_per_user(run):
        return _open_per_user(run, config)
    weights = digest([run])
    policy = _load(run, config, named_users(config))
    return Writer(_as_base(policy, run, config) if base else policy, weights, base)


def open_plan(run: Path | None, config: GenerateConfig, users: Sequence[str]) -> Writer:
    """`open_writer` for a process that only plans: tokenizer, context, users and digest, but no model.

    A base without a run is loaded nevertheless, on the CPU: its weights are its digest.
    """
    if run is None:
        whole = open_writer(run, config.model_copy(update={"device": "cpu"}), users)
        return replace(whole, policy=replace(whole.policy, model=None))  # type: ignore[arg-type]
    base = config.baseline != "none"
    if not is_per_user(run):
        return Writer(_sketch(run, config, named_users(config)), digest([run]), base)
    ids = read_per_user(run).users
    adapters = {index: run_of(run, index) for index in range(1, len(ids) + 1)}
    policy = replace(_sketch(adapters[1], config), user_ids=ids, user_texts={})
    return Writer(policy, digest(adapters.values()), base, {} if base else adapters)


def _sketch(run: Path, config: GenerateConfig, wanted: set[str] | None = None) -> Policy:
    """The policy of `run` without a model, its base's weights not read."""
    folder = model_folder(run)
    about = read_about(folder)
    trained = TrainConfig.saved(about["train"])
    name = str(folder) if trained.full_finetune else config.model or about["base"]
    base, _ = load_skeleton(name, torch.float32, config.trust_remote_code)
    users = read_users(folder, wanted)
    conversational = about.get("conversational")
    return Policy(None, base, trained, users.ids, users.texts, users.user_indices, conversational)  # type: ignore[arg-type]


def turns(writer: Writer, jobs: Sequence[Job], config: GenerateConfig) -> Iterator[tuple[Policy, bool, list[Job]]]:
    """The jobs in groups, each with the policy to write it and whether as the base alone.

    A group must be written before the next is asked for: where every user has an adapter, they take turns in one
    model. The base writes for those who have none.
    """
    if not writer.adapters:
        yield writer.policy, writer.base, list(jobs)
        return
    for index, run in writer.adapters.items():
        mine = [job for job in jobs if job.user_index == index]
        if mine:
            load_weights(writer.policy.model, model_folder(run))
            yield writer.policy, False, mine
    rest = [job for job in jobs if job.user_index not in writer.adapters]
    if rest:
        yield _as_base(writer.policy, writer.adapters[1], config), True, rest


def _open_per_user(run: Path, config: GenerateConfig) -> Writer:
    users = read_per_user(run).users
    adapters = {index: run_of(run, index) for index in range(1, len(users) + 1)}
    weights = digest(adapters.values())
    for each in adapters.values():
        check_weights(model_folder(each), read_about(model_folder(each)))
    policy = replace(_load(adapters[1], config), user_ids=users, user_texts={})
    if config.baseline != "none":
        return Writer(_as_base(policy, adapters[1], config), weights, True)
    return Writer(policy, weights, adapters=adapters)


def _load(run: Path, config: GenerateConfig, users: set[str] | None = None) -> Policy:
    return load_policy(run, config.device, config.precision, config.model, config.trust_remote_code, users)


def _as_base(policy: Policy, run: Path, config: GenerateConfig) -> Policy:
    """The policy with a model whose `as_base` is the base that `run` started from."""
    return replace(policy, model=reference_model(policy, run, config.model, config.trust_remote_code))


def _base_alone(name: str, config: GenerateConfig, users: Sequence[str]) -> Policy:
    device = pick_device(config.device)
    base = load_base(name, device, pick_dtype(config.precision, device), config.trust_remote_code)
    speed_up(base.lm, device)
    vanilla = TrainConfig(model=name, user_model="uniform", user_tokens=0, user_text=False)
    nobody = build_user_model(vanilla, 0, base.lm.get_input_embeddings().weight)
    return Policy(PersonalizedLM(base.lm, nobody), base, vanilla, list(users), {})


def digest(runs: Iterable[Path]) -> str:
    """16 hex digits that tell the weights of `runs` from any others."""
    sums = [json.dumps(read_about(model_folder(run))["sha256"], sort_keys=True) for run in runs]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]
