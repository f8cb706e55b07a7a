"""`--format vllm`: the model without users, a file of vectors for each user, and a gateway that puts them together.

vLLM takes a prompt as embeddings if it is started with `--enable-prompt-embeds`: in its completions API as the key
`prompt_embeds`, the base64 text of a tensor [tokens, width] by `torch.save`, of the whole prompt with its template. So
nothing is pickled on disk: the gateway reads safetensors and writes that text for each request.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prlhf.export import gateway
from prlhf.export.compare import Compared, Sample, compare, log_prob
from prlhf.export.peft import without_bos
from prlhf.export.template import Prefix, check_ids, prompt_ids
from prlhf.export.whole import read_whole


@torch.no_grad()
def write_vectors(prefixes: Sequence[Prefix], lm: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write users/NAME.safetensors, words.safetensors, users.json and gateway.py into the existing `folder`.

    `lm`: the model, whose input embeddings are copied, as its layers read them.
    """
    (folder / "users").mkdir()
    for one in prefixes:
        save_file({"vectors": one.vectors.to(dtype).contiguous()}, folder / "users" / f"{one.name}.safetensors")
    words = lm.get_input_embeddings()
    every = words(torch.arange(len(words.weight), device=words.weight.device))
    save_file({"words": every.to(dtype).cpu().contiguous()}, folder / "words.safetensors")
    listed = {one.user: {"file": f"users/{one.name}.safetensors", "begun": one.begun} for one in prefixes}
    (folder / "users.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(str(gateway.__file__), folder / "gateway.py")


def compare_vectors(rows: Sequence[Sample], prefixes: Sequence[Prefix], dtype: torch.dtype, folder: Path) -> Compared:
    """Compare the run with the model in `folder` behind the vectors there. Raises PrlhfError."""
    lm, tokenizer = read_whole(folder / "model", dtype)
    of = {one.user: one for one in prefixes}

    def theirs(row: Sample) -> float:
        ids = without_bos(prompt_ids(tokenizer, row), of[row.user], tokenizer)
        check_ids(row, ids)
        vectors = load_file(folder / "users" / f"{of[row.user].name}.safetensors")["vectors"]
        return log_prob(lm, ids, row.response, vectors)

    return compare(rows, theirs, dtype, "the model behind the users' vectors")
