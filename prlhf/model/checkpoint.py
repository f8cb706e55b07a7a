"""A policy or a reward model on disk: PEFT adapter (or full weights), user model, user index and tokenizer.

adapter_config.json, adapter_model.safetensors   the LoRA adapter, readable by PEFT
model.safetensors, config.json                   in their place after full fine-tuning
user_model.safetensors                           the user model's parameters
reward_head.safetensors                          the scalar head, of a reward model
users.json                                       seen users: ids (position i has index i + 1) and texts
prlhf.json                                       kind, base, its fingerprint, settings, checksums of the weights

With more than 1,000 users, so that some of them can be loaded without the others:
users.sqlite                                     instead of users.json: a table of position, id and text
user_model.sha256                                one checksum per line, for each MiB of user_model.safetensors

After `prlhf adapt`:
user_prior.safetensors                           what is known of users before their choices (user_prior.py)
adapted.sqlite                                   users who came later, and rows that changed (later_users.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, one_line
from prlhf.kernels import speed_up
from prlhf.model.base import Base, load_base, make_trainable, pick_device, pick_dtype
from prlhf.model.encoding import Encoder
from prlhf.model.later_users import changes_of
from prlhf.model.personalized import Personalized, PersonalizedLM, RewardModel, decoder_layers
from prlhf.model.sharding import load_spread_base, shard
from prlhf.model.user_models import UserModel, build_user_model
from prlhf.model.user_store import MANY, Users, index_of, read_users, write_users
from prlhf.model.weights import check_weights, load_weights, save_weights, sum_weights
from prlhf.parse import json_value
from prlhf.progress import SILENT, Progress

ABOUT = "prlhf.json"
KINDS: dict[str, type[Personalized]] = {"policy": PersonalizedLM, "reward model": RewardModel}

M = TypeVar("M", bound=Personalized)


class _About(BaseModel):
    """The part of prlhf.json that is read."""

    kind: Literal["policy", "reward model"] = "policy"  # checkpoints of the first version do not have it
    base: str
    base_fingerprint: str
    train: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A personalized model, a policy or a reward model, with everything that is needed to use it."""

    model: M
    base: Base
    config: TrainConfig
    user_ids: list[str]  # position i has user index i + 1, unless `user_indices` is given
    user_texts: dict[str, str]  # texts about those users who have one
    user_indices: list[int] | None = None  # of `user_ids`, if these are only some of the users; None: 1, 2, …
    conversational: bool | None = None  # whether its training data are conversations; None: not known

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self.base.tokenizer

    @property
    def device(self) -> torch.device:
        """The device the model is on."""
        return self.base.lm.device  # type: ignore[no-any-return]

    def index_of(self) -> dict[str, int]:
        """The user index of each seen user, by id."""
        return index_of(self.user_ids, self.user_indices)

    def encoder(self) -> Encoder:
        """An encoder of rows for this model, within its context."""
        limit = min(self.config.max_tokens or self.base.context, self.base.context)
        return Encoder(
            self.tokenizer,
            self.config.slots,
            limit,
            self.config.max_prompt_tokens,
            self.config.user_text,
            self.config.template_options,
            self.conversational,
            self.base.lm.get_input_embeddings().weight.shape[0],
        )


Policy = Trained[PersonalizedLM]


def build_policy(
    config: TrainConfig,
    user_ids: list[str],
    user_texts: dict[str, str],
    sharded: bool = False,
    progress: Progress = SILENT,
) -> Policy:
    """A new policy: base, adapter (zero at the start) and user model. `sharded`: see sharding.py."""
    return _build(config, user_ids, user_texts, PersonalizedLM, sharded, progress)


def build_reward_model(
    config: TrainConfig,
    user_ids: list[str],
    user_texts: dict[str, str],
    sharded: bool = False,
    progress: Progress = SILENT,
) -> Trained[RewardModel]:
    """A new reward model: base, adapter, user model and head. `sharded`: see sharding.py."""
    return _build(config, user_ids, user_texts, RewardModel, sharded, progress)


def _build(
    config: TrainConfig,
    user_ids: list[str],
    user_texts: dict[str, str],
    kind: Callable[[Any, UserModel], M],
    sharded: bool,
    progress: Progress,
) -> Trained[M]:
    if config.model is None:
        raise ValueError("the base must be resolved before a model is built on it")
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    if not sharded:
        base = load_base(config.model, device, dtype, config.trust_remote_code, progress, config.quantize)
        return assemble(base, config, user_ids, user_texts, kind)
    base = load_spread_base(config.model, dtype, config.trust_remote_code, progress)

    def make(lm: Any) -> M:
        return kind(lm, _fresh_users(base, config, user_ids))

    return Trained(shard(_ready(base.lm, config, device), device, make), base, config, user_ids, user_texts)


def assemble(
    base: Base,
    config: TrainConfig,
    user_ids: list[str],
    user_texts: dict[str, str],
    kind: Callable[[Any, UserModel], M] = PersonalizedLM,  # type: ignore[assignment]
) -> Trained[M]:
    """Put adapter and user model on a loaded base, as a policy or as another `kind` of model."""
    users = _fresh_users(base, config, user_ids)
    return Trained(kind(_ready(base.lm, config, base.lm.device), users), base, config, user_ids, user_texts)


def _ready(lm: Any, config: TrainConfig, device: torch.device) -> Any:
    """The base `lm` with the weights that `config` trains, and with the kernels for `device`."""
    lm = make_trainable(lm, config)
    speed_up(lm, device)
    return lm


def _fresh_users(base: Base, config: TrainConfig, user_ids: list[str]) -> UserModel:
    return _users_on(base, config, len(user_ids))


def save_policy(policy: Trained[Any], folder: Path) -> None:
    """Write everything that `load_policy` or `load_reward_model` needs into an existing folder."""
    save_weights(policy.model, folder)
    policy.tokenizer.save_pretrained(folder)
    write_users(folder, policy.user_ids, policy.user_texts)
    about = {
        "kind": next(name for name, kind in KINDS.items() if isinstance(policy.model, kind)),
        "base": policy.base.name,
        "base_fingerprint": policy.base.fingerprint,
        "train": policy.config.model_dump(mode="json", exclude={"out"}),  # on Ray a worker's scratch folder
        "conversational": policy.conversational,
        "sha256": sum_weights(folder, by_block=len(policy.user_ids) > MANY),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def model_folder(run: Path) -> Path:
    """The folder of the final model of a run; `run` itself if it is such a folder."""
    return run / "model" if (run / "model" / ABOUT).is_file() else run


def load_policy(
    run: Path,
    device: str = "auto",
    precision: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
    users: Collection[str] | None = None,
    progress: Progress = SILENT,
    whole: bool = False,
) -> Policy:
    """Load a trained policy. `base`: where the base model is, if it has moved.

    `users`: the ids of users to serve besides the generic user. From a checkpoint of many users only these are read;
    unknown ids are left out. A base that was quantized in training is quantized here; `whole`: into ordinary layers.

    Raises:
        PrlhfError: `run` is not a policy, a file is damaged, or the base cannot be loaded or is another one.
    """
    if kind_of(run) == "reward model":
        raise PrlhfError(
            f"{run} is a reward model, which does not write",
            "give the run of a policy: `prlhf train --objective dpo`",
        )
    return _load(run, PersonalizedLM, device, precision, base, trust_remote_code, users, progress, whole)


def load_reward_model(
    run: Path,
    device: str = "auto",
    precision: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
    users: Collection[str] | None = None,
) -> Trained[RewardModel]:
    """Load a trained reward model, as `load_policy` loads a policy."""
    if kind_of(run) != "reward model":
        raise PrlhfError(
            f"{run} is a policy, not a reward model", "give the run of a reward model: `prlhf train --objective rm`"
        )
    return _load(run, RewardModel, device, precision, base, trust_remote_code, users, progress)


def digest(runs: Iterable[Path]) -> str:
    """16 hex digits that tell the weights of `runs` from any others."""
    folders = [model_folder(run) for run in runs]
    sums = [json.dumps(read_about(folder)["sha256"], sort_keys=True) + (changes_of(folder) or "") for folder in folders]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]


def kind_of(run: Path) -> str:
    """`policy` or `reward model`."""
    return str(read_about(model_folder(run))["kind"])


def _load(
    run: Path,
    kind: Callable[[Any, UserModel], M],
    device: str,
    precision: str,
    base: str | None,
    trust_remote_code: bool,
    wanted: Collection[str] | None,
    progress: Progress,
    whole: bool = False,
) -> Trained[M]:
    folder = model_folder(run)
    about = read_about(folder)
    config = TrainConfig.saved(about["train"])
    users = read_users(folder, wanted)
    check_weights(folder, about, rows=not users.partial)
    where = pick_device(device)
    dtype = pick_dtype(precision, where)
    if config.full_finetune:
        loaded = load_base(str(folder), where, dtype, trust_remote_code, progress)
    else:
        how = {"quantize": config.quantize, "whole": whole}
        loaded = _own_base(run, about, base or about["base"], where, dtype, trust_remote_code, progress, **how)
    model = kind(_ready(loaded.lm, config, where), _blank_users(config, users, loaded))
    load_weights(model, folder, users)
    model.eval()
    return Trained(model, loaded, config, users.ids, users.texts, users.user_indices, about.get("conversational"))


def _blank_users(config: TrainConfig, users: Users, base: Base) -> UserModel:
    """A user model to load `users` into, which starts from zeros: they take no memory before the weights are loaded."""
    blank = config.model_copy(update={"user_init": "zero", "gate_scale": 0.0})
    return _users_on(base, blank, 0 if users.partial else users.count)


def _users_on(base: Base, config: TrainConfig, users: int) -> UserModel:
    vocabulary = base.lm.get_input_embeddings().weight
    return build_user_model(config, users, vocabulary, len(decoder_layers(base.lm))).to(vocabulary.device)


def reference_model(
    policy: Policy, run: Path, base: str | None = None, trust_remote_code: bool = False
) -> PersonalizedLM:
    """The policy whose `reference` and `as_base` are the base of a loaded policy.

    It is the policy itself with its adapter off. After full fine-tuning it is the base that the policy was trained
    from, which is loaded in addition.
    """
    if not policy.config.full_finetune:
        return policy.model
    about = read_about(model_folder(run))
    lm = policy.base.lm
    loaded = _own_base(run, about, base or about["base"], lm.device, lm.dtype, trust_remote_code)
    speed_up(loaded.lm, lm.device)
    return PersonalizedLM(loaded.lm, policy.model.users)


def _own_base(
    run: Path,
    about: dict[str, Any],
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    progress: Progress = SILENT,
    **how: Any,
) -> Base:
    loaded = load_base(name, device, dtype, trust_remote_code, progress, **how)
    if loaded.fingerprint != about["base_fingerprint"]:
        raise PrlhfError(
            f"{run} was trained on another base than {name} "
            f"(fingerprint {about['base_fingerprint']}, found {loaded.fingerprint})",
            "give the base it was trained on with --model",
        )
    return loaded


def read_about(folder: Path) -> dict[str, Any]:
    """The checkpoint's prlhf.json, checked. Raises PrlhfError."""
    try:
        about: dict[str, Any] = json_value((folder / ABOUT).read_bytes())
        if isinstance(about, dict) and "version" in about:  # the marker of another folder of ours, see folders.py
            raise FileNotFoundError(folder / ABOUT)
        _About.model_validate(about)
        TrainConfig.saved(about["train"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PrlhfError(*_why_no_checkpoint(folder)) from error
    except (OSError, ValueError, PrlhfError) as error:
        raise PrlhfError(f"{folder}/{ABOUT} is damaged: {one_line(error)}", "train again, or use a copy") from error
    return {"kind": "policy"} | about


def _why_no_checkpoint(folder: Path) -> tuple[str, str]:
    """Message and hint for a folder without `prlhf.json`; it may hold a base model."""
    for base in (folder, folder / "model"):
        if (base / "config.json").is_file():
            return f"{folder} is a base model, not a policy", f"train one on it with: prlhf train --model {base}"
    return f"{folder} is not a checkpoint: it has no {ABOUT}", "give the folder of a finished run"
