"""Tokens per second for many users: prlhf, plain batched `generate` without users, and the paper's released code.

    python -m benchmarks.generate                           # the bundled tiny model
    python -m benchmarks.generate --model smollm2-135m      # SmolLM2's shape with random weights
    python -m benchmarks.generate --model FOLDER --json

There are 64 prompts of 16 to `--longest` random tokens (438 for the tiny model, given by its context), each for another
user, in batches of 32, with 64 new greedy tokens each. Contestants run in turn; medians over the rounds and the
spread are printed. With the defaults a run takes minutes on two cores.

- ours: the decoding of `prlhf generate` for a policy with individual users (T_u = 10) and a LoRA adapter.
- plain: the same language model with the adapter and without users: transformers' `generate` on left-padded batches
  that are sorted by length (which is faster than unsorted).
- released: one prompt at a time, with the user's vectors in front and without a KV cache, as in the authors' code. The
  loop is written here, because `generate` without a cache drops embeddings after the first token. As it is slow, it
  gets a sample of prompts of all lengths, and writes only their first tokens, which are the cheapest: its rate is
  overstated, and the ratio understated.

In the case "mixed ends" the responses end after 8 to 64 tokens, uniformly. A random model does not end by itself, so
both get the lengths, `generate` as a stopping criterion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, StoppingCriteria, StoppingCriteriaList
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow
from prlhf.generate.decoding import batches
from prlhf.model.base import Base, load_base
from prlhf.model.checkpoint import Policy, assemble
from prlhf.model.personalized import unwrapped

PROMPTS, NEW, BATCH, LONGEST = 64, 64, 32, {"tiny": 512}  # of other models: 96
SAMPLE, FIRST = 4, 8  # prompts and tokens for the released code
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2-135m, or what `prlhf train --model` takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, help="tokens of the longest prompt (512; 96 except for tiny)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(open_policy(args.model), args.rounds, args.longest or LONGEST.get(args.model, 96))
    print(json.dumps({"model": args.model, **found}) if args.json else table(args.model, found))


def open_policy(model: str) -> Policy:
    """A policy with one user per prompt and an adapter that is not zero."""
    torch.manual_seed(0)
    if model == "smollm2-135m":
        lm: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2)).eval()
        base = Base(model, lm, None, "")
    else:
        base = load_base(model)
    config = TrainConfig(user_tokens=10, user_init="random")
    policy = assemble(base, config, [str(i) for i in range(PROMPTS)], {})
    policy.model.eval()
    unwrapped(policy.model.lm).generation_config = GenerationConfig()  # without an end of text
    return policy


def measure(policy: Policy, rounds: int, longest: int) -> dict[str, Any]:
    context = policy.base.context - NEW - policy.config.user_tokens
    vocabulary = policy.model.lm.get_input_embeddings().num_embeddings
    rows = [
        DecodeRow(ids, user, seed=user) for user, ids in enumerate(prompts(min(longest, context), vocabulary), start=1)
    ]
    ours(policy, rows[:8], [4] * 8), plain(policy, rows[:8], [4] * 8)  # warm-up
    cases = {
        "equal lengths": [NEW] * PROMPTS,
        "mixed ends": [8 + 56 * (29 * i % PROMPTS) // 63 for i in range(PROMPTS)],
    }
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "prompt_tokens": sum(len(row.ids) for row in rows)}
    for case, rooms in cases.items():
        contestants: dict[str, Callable[[], int]] = {
            "ours": lambda rooms=rooms: ours(policy, rows, rooms),
            "plain": lambda rooms=rooms: plain(policy, rows, rooms),
        }
        if case == "equal lengths":
            contestants["released"] = lambda: released(policy, rows)
        found[case] = compare(contestants, rounds)
    return found


def prompts(longest: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Prompts of 16 to `longest` tokens in equal steps, in a fixed order, without special tokens."""
    lengths = [16 + (longest - 16) * (37 * i % PROMPTS) // (PROMPTS - 1) for i in range(PROMPTS)]
    return [
        tuple(100 + (31 * i + 7 * j * j) % (vocabulary - 100) for j in range(length))
        for i, length in enumerate(lengths)
    ]


def compare(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Measure tokens per second of each in turn; returns ratios of ours to the others for each round."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, write in contestants.items():
            began = time.perf_counter()
            tokens = write()
            rates[name].append(tokens / (time.perf_counter() - began))
    ratios = {
        name: [our / other for our, other in zip(rates["ours"], some, strict=True)]
        for name, some in rates.items()
        if name != "ours"
    }
    return {"tokens_per_second": spread(rates), "ours_times": spread(ratios)}


def spread(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": statistics.median(some), "least": min(some), "most": max(some)} for name, some in found.items()
    }


# ---- the contestants: each returns its number of tokens ----


def ours(policy: Policy, rows: list[DecodeRow], rooms: list[int]) -> int:
    fresh = [DecodeRow(row.ids, row.user_index, row.seed, tag=room) for row, room in zip(rows, rooms, strict=True)]
    loop = DecodeLoop(policy.model, BATCH, NEW, lambda row: len(row.written) == row.tag)
    return sum(len(row.written) for ended in loop.run(fresh) for row in ended)


@torch.no_grad()
def plain(policy: Policy, rows: list[DecodeRow], rooms: list[int]) -> int:
    greedy = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    fresh = [DecodeRow(row.ids, None, 0, tag=room) for row, room in zip(rows, rooms, strict=True)]
    for batch in batches(fresh, BATCH):
        longest = max(len(row.ids) for row in batch)
        ids = torch.tensor([[0] * (longest - len(row.ids)) + list(row.ids) for row in batch])
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in batch])
        stops = StoppingCriteriaList([Room(longest, torch.tensor([row.tag for row in batch]))])
        policy.model.lm.generate(input_ids=ids, attention_mask=mask, generation_config=greedy, stopping_criteria=stops)
    return sum(rooms)


@torch.no_grad()
def released(policy: Policy, rows: list[DecodeRow]) -> int:
    lm = policy.model.lm
    words = lm.get_input_embeddings()
    by_length = sorted(rows, key=lambda row: len(row.ids))
    for row in by_length[PROMPTS // SAMPLE // 2 :: PROMPTS // SAMPLE]:
        embeds = torch.cat([policy.model.users(torch.tensor([row.user_index])), words(torch.tensor([row.ids]))], 1)
        for _ in range(FIRST):
            token = lm(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(1)
            embeds = torch.cat([embeds, words(token)[:, None]], 1)
    return SAMPLE * FIRST


class Room(StoppingCriteria):
    """A stopping criterion: each row ends at its own number of tokens."""

    def __init__(self, before: int, rooms: Tensor) -> None:
        self.before, self.rooms = before, rooms

    @override
    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        return self.rooms <= input_ids.shape[1] - self.before


def table(model: str, found: dict[str, Any]) -> str:
    lines = [f"{model}: {PROMPTS} prompts, {found['prompt_tokens']} tokens, {found['threads']} threads"]
    for case, result in found.items():
        if isinstance(result, dict):
            lines.append(case)
            for name, rate in result["tokens_per_second"].items():
                times = result["ours_times"].get(name)
                ratio = f"   ours: {said(times, 2)} times that" if times else ""
                lines.append(f"  {name:9} {said(rate, 1)} tokens/s{ratio}")
    return "\n".join(lines)


def said(found: dict[str, float], digits: int) -> str:
    median, least, most = (f"{found[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


if __name__ == "__main__":
    main()
