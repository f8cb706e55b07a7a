"""A policy on disk: PEFT adapter (or full weights), user model, user index, tokenizer, and what binds them.

adapter_config.json, adapter_model.safetensors   the LoRA adapter, readable by PEFT
model.safetensors, config.json                   instead of them after full fine-tuning
user_model.safetensors                           the user model's parameters
users.json                                       seen users: ids (position i has index i + 1) and texts
prlhf.json                                       base, its fingerprint, settings, checksums of the weights
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.model.base import Base, load_base, pick_device, pick_dtype
from prlhf.model.encoding import Encoder
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.users import build_user_model

ABOUT = "prlhf.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "user_model.safetensors")


@dataclass(frozen=True)
class Policy:
    """A personalized policy ready to score or to write."""

    model: PersonalizedLM
    base: Base
    config: TrainConfig
    user_ids: list[str]  # position i holds the user of index i + 1
    user_texts: dict[str, str]  # text about the user, for those who have one

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def device(self) -> torch.device:
        return self.base.lm.device  # type: ignore[no-any-return]

    def index_of(self) -> dict[str, int]:
        return {user: i for i, user in enumerate(self.user_ids, start=1)}

    def encoder(self) -> Encoder:
        limit = min(self.config.max_tokens or self.base.context, self.base.context)
        return Encoder(
            self.tokenizer, self.config.user_tokens, limit, self.config.max_prompt_tokens, self.config.user_text
        )


def build_policy(config: TrainConfig, user_ids: list[str], user_texts: dict[str, str]) -> Policy:
    """A fresh policy: base, adapter (zero at the start) and user model."""
    if config.model is None:
        raise ValueError("the base must be resolved before a policy is built")
    device = pick_device(config.device)
    base = load_base(config.model, device, pick_dtype(config.precision, device), config.trust_remote_code)
    return assemble(base, config, user_ids, user_texts)


def assemble(base: Base, config: TrainConfig, user_ids: list[str], user_texts: dict[str, str]) -> Policy:
    """Put adapter and user model on a loaded base. Dropout of the base itself is turned off, as TRL does."""
    vocabulary = base.lm.get_input_embeddings().weight
    users = build_user_model(config, len(user_ids), vocabulary).to(base.lm.device)
    _turn_off_dropout(base.lm)
    lm = _trainable(base.lm, config)
    return Policy(PersonalizedLM(lm, users), base, config, user_ids, user_texts)


def _turn_off_dropout(lm: Any) -> None:
    """Both kinds: modules, and the rates that OPT, GPT-NeoX and others hand to functions."""
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def _trainable(lm: Any, config: TrainConfig) -> Any:
    if config.full_finetune:
        for parameter in lm.parameters():
            parameter.requires_grad_(True)
        return lm
    from peft import LoraConfig, get_peft_model

    targets = config.lora_targets if config.lora_targets == "all-linear" else config.lora_targets.split(",")
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return get_peft_model(lm, lora, autocast_adapter_dtype=True)
    except ValueError as error:
        raise PrlhfError(
            f"lora_targets = '{config.lora_targets}' fits no layer: {_one_line(error)}",
            "use --lora-targets all-linear",
        ) from error


def save_weights(model: PersonalizedLM, folder: Path) -> None:
    """Adapter (or full weights) and user model, as safetensors."""
    # PEFT would ask the hub, every time, whether the base's vocabulary has changed: its table is not trained here
    options = {"save_embedding_layers": False} if hasattr(model.lm, "peft_config") else {}
    model.lm.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; ours is written with the results
    state = {name: value.detach().cpu().contiguous() for name, value in model.users.state_dict().items()}
    save_file(state, folder / "user_model.safetensors")


def save_policy(policy: Policy, folder: Path) -> None:
    """Everything `load_policy` needs, into an existing folder."""
    save_weights(policy.model, folder)
    policy.tokenizer.save_pretrained(folder)
    users = {"ids": policy.user_ids, "texts": policy.user_texts}
    (folder / "users.json").write_text(json.dumps(users, ensure_ascii=False) + "\n", encoding="utf-8")
    about = {
        "base": policy.base.name,
        "base_fingerprint": policy.base.fingerprint,
        "train": policy.config.model_dump(mode="json"),
        "sha256": {name: _sha256(folder / name) for name in WEIGHTS if (folder / name).exists()},
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def model_folder(run: Path) -> Path:
    """The final model of a run folder; the folder itself where it is a model."""
    return run / "model" if (run / "model" / ABOUT).is_file() else run


def load_policy(
    run: Path, device: str = "auto", precision: str = "auto", base: str | None = None, trust_remote_code: bool = False
) -> Policy:
    """Load a trained policy; `base` gives the base model's place where it has moved."""
    folder = model_folder(run)
    about = read_about(folder)
    config = TrainConfig.model_validate(about["train"])
    user_ids, user_texts = _read_users(folder)
    check_weights(folder, about)
    where = pick_device(device)
    dtype = pick_dtype(precision, where)
    if config.full_finetune:
        loaded = load_base(str(folder), where, dtype, trust_remote_code)
    else:
        loaded = _own_base(run, about, base or about["base"], where, dtype, trust_remote_code)
    policy = assemble(loaded, config, user_ids, user_texts)
    load_weights(policy.model, folder)
    policy.model.eval()
    return policy


def reference_model(
    policy: Policy, run: Path, base: str | None = None, trust_remote_code: bool = False
) -> PersonalizedLM:
    """Whose `reference` and `as_base` are the base of a loaded policy: the policy itself with its adapter off, or,
    after full fine-tuning, the base it was trained from, loaded beside it."""
    if not policy.config.full_finetune:
        return policy.model
    about = read_about(model_folder(run))
    lm = policy.base.lm
    loaded = _own_base(run, about, base or about["base"], lm.device, lm.dtype, trust_remote_code)
    return PersonalizedLM(loaded.lm, policy.model.users)


def _own_base(
    run: Path, about: dict[str, Any], name: str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> Base:
    loaded = load_base(name, device, dtype, trust_remote_code)
    if loaded.fingerprint != about["base_fingerprint"]:
        raise PrlhfError(
            f"{run} was trained on another base than {name} "
            f"(fingerprint {about['base_fingerprint']}, found {loaded.fingerprint})",
            "give the base it was trained on with --model",
        )
    return loaded


def load_weights(model: PersonalizedLM, folder: Path) -> None:
    """Read what `save_weights` wrote into `model`, in place."""
    try:
        if hasattr(model.lm, "peft_config"):
            from peft import set_peft_model_state_dict

            missing = set_peft_model_state_dict(model.lm, load_file(folder / "adapter_model.safetensors"))
            if missing.unexpected_keys:
                raise PrlhfError(f"{folder} holds adapter weights this base has no place for", "use its own base")
        else:
            # strict=False: tied weights are stored once
            model.lm.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        model.users.load_state_dict(load_file(folder / "user_model.safetensors"))
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        raise PrlhfError(
            f"the weights in {folder} are damaged: {_one_line(error)}", "train again, or use a copy"
        ) from error


def read_about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        about["base"], about["base_fingerprint"], about["sha256"].items()
        TrainConfig.model_validate(about["train"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PrlhfError(
            f"{folder} is no checkpoint: it has no {ABOUT}", "give the folder of a finished run"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrlhfError(f"{folder}/{ABOUT} is damaged: {_one_line(error)}", "train again, or use a copy") from error
    return about


def _read_users(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of the seen users, and the texts of those who have one."""
    try:
        users = json.loads((folder / "users.json").read_text(encoding="utf-8"))
        ids, texts = users["ids"], users["texts"]
    except FileNotFoundError as error:
        raise PrlhfError(f"{folder} lacks users.json", "train again, or use a copy") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PrlhfError(f"{folder}/users.json is damaged: {_one_line(error)}", "train again, or use a copy") from error
    if not (isinstance(ids, list) and isinstance(texts, dict)):
        raise PrlhfError(f"{folder}/users.json is damaged: no list of ids with texts", "train again, or use a copy")
    return ids, texts


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def check_weights(folder: Path, about: dict[str, Any]) -> None:
    """Compare every weight file with the checksum taken when it was saved."""
    for name, expected in about["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise PrlhfError(f"{folder} lacks {name}", "train again, or use a copy")
        if _sha256(path) != expected:
            raise PrlhfError(
                f"{path} was changed or cut short after it was saved (SHA-256 differs)", "train again, or use a copy"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
