"""`--format peft`: a folder that `peft.PeftModel.from_pretrained(base, FOLDER)` loads, as do vLLM, SGLang and TGI.

Someone with gates is a LoRA adapter on the base. Someone with vectors in front of the prompt is a prompt-tuning adapter
on the base with the run's LoRA merged, which is written beside it, since PEFT does not add one to the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prlhf.export.compare import Compared, Sample, compare, log_prob
from prlhf.export.person import ADAPTER, Person
from prlhf.export.template import Prefix, check_ids, prompt_ids
from prlhf.export.whole import read_whole
from prlhf.model.checkpoint import Policy

WEIGHTS, WRITTEN = "adapter_model.safetensors", "written"


def write_peft(person: Person, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into the existing `folder`."""
    config = copy.copy(person.config)
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in person.weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def compare_peft(policy: Policy, rows: Sequence[Sample], folder: Path) -> Compared:
    """Compare the run with the LoRA adapter in `folder` on the same base. Raises PrlhfError."""
    lm, dtype = policy.model.lm, policy.base.lm.dtype
    policy.model.act_as(None)
    lm.load_adapter(str(folder), WRITTEN)
    lm.set_adapter(WRITTEN)
    try:
        return compare(rows, lambda row: log_prob(lm, row.before, row.response), dtype, "the adapter")
    finally:
        lm.set_adapter(ADAPTER)
        lm.delete_adapter(WRITTEN)


def write_prompt_tuning(prefix: Prefix, lm_config: Any, folder: Path) -> None:
    """Write the vectors of `prefix` as a prompt-tuning adapter into the existing `folder`."""
    from peft import PromptTuningConfig, TaskType

    text = lm_config.get_text_config()
    PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=len(prefix.vectors),
        token_dim=prefix.vectors.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=text.num_attention_heads,
        num_layers=text.num_hidden_layers,
        base_model_name_or_path="../../model",
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file({"prompt_embeddings": prefix.vectors.contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})


def compare_prompt_tuning(
    rows: Sequence[Sample], prefixes: Sequence[Prefix], dtype: torch.dtype, folder: Path
) -> Compared:
    """Compare the run with the model and the adapters in `folder`, loaded by PEFT. Raises PrlhfError."""
    from peft import PeftModel

    lm, tokenizer = read_whole(folder / "model", dtype)
    of = {one.user: one for one in prefixes}
    loaded: dict[str, Any] = {}

    def theirs(row: Sample) -> float:
        if row.user not in loaded:
            loaded.clear()
            loaded[row.user] = PeftModel.from_pretrained(lm, str(folder / "users" / of[row.user].name)).eval()
        ids = without_bos(prompt_ids(tokenizer, row), of[row.user], tokenizer)
        check_ids(row, ids)
        return log_prob(loaded[row.user], ids, row.response)

    return compare(rows, theirs, dtype, "the adapter")


def without_bos(ids: list[int], prefix: Prefix, tokenizer: Any) -> list[int]:
    """The ids of a prompt without its BOS, if that is among the vectors in front of it."""
    return ids[1:] if prefix.begun and ids[:1] == [tokenizer.bos_token_id] else ids
