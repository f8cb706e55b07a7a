"""What was written, measured: a JSON line per response.

    python -m benchmarks.real_text.measures RESPONSES --model BASE --out FILE

Each line has the measures of style.py, whether the model ended the response, and the base's NLL of each of its tokens
(nats; the prompt as the users typed it, without what a baseline was shown, and the end if there is one).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_text.style import MEASURES
from prlhf.config import GenerateConfig
from prlhf.files import atomic_file
from prlhf.generate.writer import open_model
from prlhf.model.checkpoint import Policy
from prlhf.parse import json_text
from prlhf.responses import Response, read_responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = open_model(None, GenerateConfig(baseline="base", model=args.model, precision=args.precision), []).policy
    rows = [measured(row, base) for row in read_responses(args.responses)]
    with atomic_file(args.out) as beside:
        beside.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")


def measured(row: Response, base: Policy) -> dict[str, Any]:
    found = {name: measure(row.response) for name, measure in MEASURES.items()}
    known = {"prompt_id": row.prompt_id, "user_id": row.user_id, "ended": row.finish_reason == "stop"}
    return known | found | {"nll": token_nll(row, base)}


def token_nll(row: Response, base: Policy) -> list[float]:
    """The base's NLL in nats of each token of a response, and of its end if it was ended."""
    encoder = base.encoder()
    before = encoder.prompt(row.prompt, base.base.context, row.prompt_id)
    text = row.response if isinstance(row.prompt, str) else [{"role": "assistant", "content": row.response}]
    after = encoder.response(row.prompt, text, base.base.context)
    if row.finish_reason == "length":
        after = after[:-1]
    if not after:
        return []
    ids = torch.tensor([before + after], device=base.device)
    with torch.no_grad():
        logits = base.base.lm(ids, logits_to_keep=len(after) + 1).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, len(before) :], reduction="none")
    return [round(value, 4) for value in losses.tolist()]


def read_measures(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
