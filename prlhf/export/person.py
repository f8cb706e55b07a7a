"""A person as an ordinary LoRA adapter: with a gate g_u, diag(g_u) A in place of A (model/gates.py); B as it is.

The generic user's gate is 1, so his adapter is the run's. Vectors in front of the prompt cannot be part of an adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError, unknown_user
from prlhf.model.base import Base
from prlhf.model.checkpoint import Policy, load_policy, model_folder, read_about
from prlhf.model.gates import folded
from prlhf.model.per_user import is_per_user, read_per_user, run_of
from prlhf.model.personalized import decoder_layers

ADAPTER = "default"  # PEFT's name for the only adapter of a model


@dataclass(frozen=True)
class Person:
    """Someone as an adapter on `base`. `weights`: A [r, d_in] and B [d_out, r] of each layer, by PEFT's names."""

    user: str
    text: str  # about the person, which the run reads in front of the prompt; "" if there is none
    run: Path
    base: Base
    config: Any  # PEFT's LoraConfig
    weights: dict[str, Tensor]
    policy: Policy  # it was made from
    user_index: int


def people(
    run: Path, users: Collection[str], base: str | None, trust_remote_code: bool, precision: str = "bf16"
) -> Iterator[Person]:
    """Each of `users` as an adapter. The run is loaded at the first of them, and all users are checked then.

    Args:
        run: a finished run.
        users: ids of its seen users, or `generic`.
        base: where the base model is, if it has moved.
        trust_remote_code: run the code that comes with the base.
        precision: of the base; bf16 is enough for adapters, which are fp32 all the same.

    Raises:
        PrlhfError: a user is unknown, or what tells the run's users apart is not in an adapter.
    """
    if is_per_user(run):
        known = {user: run_of(run, index) for index, user in enumerate(read_per_user(run).users, start=1)}
        _check_known(run, users, known)
        for user in users:
            yield person_of(_load(known[user], [], base, trust_remote_code, precision), run, user, 0)
        return
    _check_adapter(run)
    policy = _load(run, users, base, trust_remote_code, precision)
    known_indices = {GENERIC: 0} | policy.index_of()
    _check_known(run, users, known_indices)
    _check_place(run, policy, users)
    for user in users:
        yield person_of(policy, run, user, known_indices[user])


def _load(run: Path, users: Collection[str], base: str | None, trust_remote_code: bool, precision: str) -> Policy:
    return load_policy(run, "cpu", precision, base, trust_remote_code, set(users) - {GENERIC}, whole=True)


def person_of(policy: Policy, run: Path, user: str, user_index: int) -> Person:
    """The user of `user_index` of a policy without vectors in front of the prompt."""
    from peft import get_peft_model_state_dict

    lm, gates = policy.model.lm, policy.model.users.gates
    state = lm.state_dict()
    if gates is not None:
        with torch.no_grad():
            gate = 1 + gates(torch.tensor([user_index]))[0]
        state |= folded(lm, decoder_layers(lm), gate)
    weights = get_peft_model_state_dict(lm, state, save_embedding_layers=False)
    text = policy.user_texts.get(user, "") if policy.config.user_text else ""
    return Person(user, text, run, policy.base, lm.peft_config[ADAPTER], weights, policy, user_index)


# ---- refusals ----


def _check_known(run: Path, users: Collection[str], known: Collection[str]) -> None:
    for user in users:
        if user not in known:
            raise unknown_user(user, run, known)


def _check_adapter(run: Path) -> None:
    if read_about(model_folder(run))["train"].get("full_finetune"):
        raise PrlhfError(
            f"{run} was trained with full_finetune, so it has no adapter",
            f"{model_folder(run)} is a whole model that transformers loads; for its users use `prlhf generate {run}`",
        )


def _check_place(run: Path, policy: Policy, users: Collection[str]) -> None:
    if policy.model.users.gates is None and set(users) != {GENERIC}:
        raise PrlhfError(f"{run} serves everyone alike, so it holds no adapter of a user", "export --user generic")
