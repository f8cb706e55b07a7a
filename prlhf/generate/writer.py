"""Who writes responses: a run, one adapter per user, or a base model alone, loaded once, here or in a worker.

`open_model` loads the weights; `open_plan` knows as much of them as it takes to plan requests that others write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.config.train import WITHOUT_USERS
from prlhf.errors import PrlhfError
from prlhf.extensions import BASELINES
from prlhf.generate.best_of import load_best_of
from prlhf.generate.decode_loop import serves
from prlhf.generate.decoding import Written, write
from prlhf.generate.readers import named_users
from prlhf.generate.requests import WriteRequest
from prlhf.kernels import speed_up
from prlhf.model.base import load_base, load_skeleton, pick_device, pick_dtype
from prlhf.model.checkpoint import Policy, digest, load_policy, model_folder, read_about, reference_model
from prlhf.model.per_user import is_per_user, read_per_user, run_of
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.user_models import build_user_model
from prlhf.model.user_store import read_users
from prlhf.model.weights import check_weights, load_weights
from prlhf.progress import SILENT, Progress
from prlhf.responses import Response


@dataclass(frozen=True)
class WriterSpec:
    """All that a writer needs to know, wherever it is."""

    run: Path | None
    config: GenerateConfig
    users: Sequence[str]  # ids of the data's seen users
    settings: dict[str, Any]  # of each row


class Writer:
    """Writes responses with one loaded model; the same in this process and in a worker."""

    def __init__(self, spec: WriterSpec, progress: Progress = SILENT, model: WritingModel | None = None) -> None:
        """Load the model, unless `model` is it, and for best-of-N the reward; say so if its kind is slow."""
        self.spec, config = spec, spec.config
        self.model = model or open_model(spec.run, config, spec.users)
        fingerprint = self.model.policy.base.fingerprint
        self.write_requests = load_best_of(config.reward, config, fingerprint) if config.reward else write
        if not serves(self.model.policy.model):
            progress.note(
                "this kind of model is decoded by transformers' generate: batches wait for their longest response"
            )

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[list[Response]]:
        """The rows of `requests`, as they end."""
        for policy, base, group in turns(self.model, requests, self.spec.config):
            for ended in self.write_requests(policy, group, self.spec.config, base):
                yield [as_response(one, self.spec.settings) for one in ended]


def as_response(written: Written, settings: dict[str, Any]) -> Response:
    """The row of the output file for what was written."""
    request = written.request
    return Response(
        prompt_id=request.prompt_id,
        user_id=request.user_id,
        user_index=request.user_index,
        prompt=request.prompt,
        response=written.text,
        prompt_tokens=len(request.ids),
        response_tokens=written.tokens,
        finish_reason="stop" if written.finished else "length",
        settings=settings,
        reward=written.reward,
    )


# ---- the model ----


@dataclass(frozen=True)
class WritingModel:
    """A policy, and which of its parts write."""

    policy: Policy
    weights: str  # a digest of the weights; rows that others wrote are not mixed in
    base: bool = False  # the base alone: adapter and user vectors off
    adapters: dict[int, Path] = field(default_factory=dict)  # user index -> run, where every user has one


def open_model(
    run: Path | None, config: GenerateConfig, users: Sequence[str], progress: Progress = SILENT
) -> WritingModel:
    """Load what writes for `config`: `run`, or its base for a baseline, or without a run the base `config.model`.

    `users`: ids of the data's seen users; a base model does not know users.
    """
    baseline = BASELINES[config.baseline]
    if run is None:
        if baseline.needs_run or config.model is None:
            raise PrlhfError(
                "no run is named",
                "give the folder of a finished run; for --baseline base, oracle or in-context a --model will do",
            )
        policy = _base_alone(config.model, config, users, progress)
        return WritingModel(policy, policy.base.fingerprint, baseline.as_base)
    if is_per_user(run):
        return _open_per_user(run, config, progress)
    weights = digest([run])
    policy = _load(run, config, progress, named_users(config))
    return WritingModel(_as_base(policy, run, config) if baseline.as_base else policy, weights, baseline.as_base)


def open_plan(run: Path | None, config: GenerateConfig, users: Sequence[str]) -> WritingModel:
    """`open_model` for a process that only plans: tokenizer, context, users and digest, but no model.

    A base without a run is loaded nevertheless, on the CPU, because its digest is made from its weights.
    """
    if run is None:
        whole = open_model(run, config.model_copy(update={"device": "cpu"}), users)
        return replace(whole, policy=replace(whole.policy, model=None))  # type: ignore[arg-type]
    base = BASELINES[config.baseline].as_base
    if not is_per_user(run):
        return WritingModel(_sketch(run, config, named_users(config)), digest([run]), base)
    ids, adapters = _adapters(run)
    policy = replace(_sketch(adapters[1], config), user_ids=ids, user_texts={})
    return WritingModel(policy, digest(adapters.values()), base, {} if base else adapters)


def turns(
    model: WritingModel, requests: Sequence[WriteRequest], config: GenerateConfig
) -> Iterator[tuple[Policy, bool, list[WriteRequest]]]:
    """The requests in groups, each with the policy that writes it and whether as the base alone.

    A group must be written before the next is asked for: where every user has an adapter, they take turns in one
    model. The base writes for users who have none.
    """
    if not model.adapters:
        yield model.policy, model.base, list(requests)
        return
    for user_index, run in model.adapters.items():
        own = [request for request in requests if request.user_index == user_index]
        if own:
            load_weights(model.policy.model, model_folder(run))
            yield model.policy, False, own
    rest = [request for request in requests if request.user_index not in model.adapters]
    if rest:
        yield _as_base(model.policy, model.adapters[1], config), True, rest


def _sketch(run: Path, config: GenerateConfig, wanted: set[str] | None = None) -> Policy:
    """The policy of `run` without a model; its base's weights are not read."""
    folder = model_folder(run)
    about = read_about(folder)
    trained = TrainConfig.saved(about["train"])
    name = str(folder) if trained.full_finetune else config.model or about["base"]
    base, _ = load_skeleton(name, torch.float32, config.trust_remote_code)
    users = read_users(folder, wanted)
    conversational = about.get("conversational")
    return Policy(None, base, trained, users.ids, users.texts, users.user_indices, conversational)  # type: ignore[arg-type]


def _adapters(run: Path) -> tuple[list[str], dict[int, Path]]:
    """The users of a folder of one adapter per user, and the run of each user index."""
    ids = read_per_user(run).users
    return ids, {user_index: run_of(run, user_index) for user_index in range(1, len(ids) + 1)}


def _open_per_user(run: Path, config: GenerateConfig, progress: Progress) -> WritingModel:
    users, adapters = _adapters(run)
    weights = digest(adapters.values())
    for each in adapters.values():
        check_weights(model_folder(each), read_about(model_folder(each)))
    policy = replace(_load(adapters[1], config, progress), user_ids=users, user_texts={})
    if BASELINES[config.baseline].as_base:
        return WritingModel(_as_base(policy, adapters[1], config), weights, True)
    return WritingModel(policy, weights, adapters=adapters)


def _load(run: Path, config: GenerateConfig, progress: Progress, users: set[str] | None = None) -> Policy:
    return load_policy(run, config.device, config.precision, config.model, config.trust_remote_code, users, progress)


def _as_base(policy: Policy, run: Path, config: GenerateConfig) -> Policy:
    """The policy with a model whose `as_base` is the base that `run` started from."""
    return replace(policy, model=reference_model(policy, run, config.model, config.trust_remote_code))


def _base_alone(name: str, config: GenerateConfig, users: Sequence[str], progress: Progress) -> Policy:
    device = pick_device(config.device)
    base = load_base(name, device, pick_dtype(config.precision, device), config.trust_remote_code, progress)
    speed_up(base.lm, device)
    vanilla = TrainConfig(model=name, **WITHOUT_USERS)
    nobody = build_user_model(vanilla, 0, base.lm.get_input_embeddings().weight)
    return Policy(PersonalizedLM(base.lm, nobody), base, vanilla, list(users), {})
