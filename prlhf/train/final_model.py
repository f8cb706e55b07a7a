"""The model that a finished run leaves in model/, with a card that says how it was made.

A policy or reward model is written as `prlhf generate` and `prlhf judge` read it. Supervised fine-tuning leaves a
plain causal LM with its tokenizer, the adapter merged into it, for the next stage: `prlhf train --model RUN/model`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from prlhf.model.base import load_base, make_trainable
from prlhf.model.checkpoint import Trained, save_policy

LORA = ".lora_"  # in the names of an adapter's weights, by PEFT
BASE_CARD = """---
{base_model}tags: [prlhf, sft]
---
# A base model made with prlhf

`{model}`, fine-tuned on the chosen responses of `{dataset}` ({steps} steps{kept}; the same for all users).

    prlhf train --model FOLDER --dataset DATASET
"""


def write_model(policy: Trained[Any], results: dict[str, Any], folder: Path) -> None:
    """Write a trained model and its card into the existing `folder`."""
    if policy.config.objective == "sft":
        _write_base(policy, results, folder)
        return
    save_policy(policy, folder)
    template = resources.files("prlhf.train").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        config=policy.config,
        gates=policy.model.users.gates is not None,
        results=results,
        users=len(policy.user_ids),
        base=policy.base,
        base_name=public_name(policy.base.name),
        base_is_public=is_public(policy.base.name),
        data_name=Path(policy.config.dataset).name,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_base(policy: Trained[Any], results: dict[str, Any], folder: Path) -> None:
    """Write the whole language model, an adapter merged into it."""
    lm = _whole_lm(policy)
    merged = lm.merge_and_unload() if hasattr(lm, "merge_and_unload") else lm
    merged.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    model, data = results["model"], Path(results["dataset"]).name
    named = f"base_model: {model}\n" if is_public(model) else ""
    kept = ", of which the best by {metric} is kept, step {step}".format(**results["best"]) if "best" in results else ""
    about = {"base_model": named, "model": public_name(model), "dataset": data, "steps": results["steps"]}
    card = BASE_CARD.format(**about, kept=kept)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _whole_lm(policy: Trained[Any]) -> Any:
    """The language model; if the workers hold shards of it or it is quantized, read again, with the trained weights."""
    gathered, config = policy.model.to_save, policy.config
    if gathered is None and config.quantize == "none":
        return policy.model.lm
    if gathered is None:
        gathered = {name: value for name, value in policy.model.lm.state_dict().items() if LORA in name}
    where = (str(config.model), "cpu", policy.base.lm.dtype, config.trust_remote_code)
    base = load_base(*where, quantize=config.quantize, whole=True)
    lm = make_trainable(base.lm, config)
    lm.load_state_dict(gathered, strict=False)  # an adapter's weights, or all of them
    return lm


def public_name(base: str) -> str:
    """The name of a base on a card that is uploaded: a hub id as it is, a path on this machine by its last part."""
    return Path(base).name if Path(base).expanduser().exists() or Path(base).is_absolute() else base


def is_public(base: str) -> bool:
    """Whether others can find `base` by its name: it is a hub id."""
    return base != "tiny" and public_name(base) == base
