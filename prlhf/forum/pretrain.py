"""Train the tiny base model of the package from scratch on text of the synthetic forum.

    python -m prlhf.forum.pretrain --recipe prlhf/assets/tiny-base.yaml --out prlhf/assets/tiny-base

This is pre-training and SFT in one, without users or preferences.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prlhf.forum import posts, tastes

EOS, PAD = "<|end|>", "<|pad|>"


class Recipe(BaseModel):
    """Keys of prlhf/assets/tiny-base.yaml."""

    model_config = ConfigDict(extra="forbid")

    seed: int
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    feed_forward: int
    context: int
    steps: int
    batch_size: int  # posts per step
    summaries_per_post: int
    wish_share: float  # share of posts that begin with a wish, per side of the style (facts, order, tone)
    example_share: float  # share of steps with an example before each post: another post and a summary of the style
    lr: float
    copy_steps: int  # first steps, on repeated random words: they teach copying, which the task needs
    warmup_steps: int
    post_weight: float  # weight of the loss on the post's tokens; that of summary tokens is 1
    check_cases: int  # samples at temperature 1 to check at the end


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on generated text: each word of the forum is one token; other text can be encoded, too."""
    rng = random.Random(recipe.seed)
    texts = [context + summary for _ in range(4000) for context, (summary,) in [write_example(rng, 1, 0.5, 2)]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, bos_token=None)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create a Llama with the sizes of the recipe and random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.feed_forward,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def write_example(rng: random.Random, summaries: int, wish_share: float, examples: int) -> tuple[str, list[str]]:
    """Return the text before a summary, and several summaries of one post in the style that it asks for.

    With `examples`, that many other posts with summaries come first, as in-context examples; they set all sides of the
    style, and there is no wish.
    """
    style = posts.draw_style(rng)
    post = posts.write_post(rng)
    named = set() if examples else {side for side in ("facts", "order", "tone") if rng.random() < wish_share}
    wish = tastes.write_wish(style, named, rng) if named else ""
    shown = [posts.write_post(rng) for _ in range(examples)]
    before = "".join(f"{other.prompt}{posts.write_summary(other, rng, style)}\n\n" for other in shown)
    bound = {"facts", "order", "tone"} if examples else named
    styles = [_bound_to(style, bound, posts.draw_style(rng)) for _ in range(summaries)]
    return before + wish + post.prompt, [posts.write_summary(post, rng, free) for free in styles]


def _bound_to(style: posts.Style, bound: set[str], free: posts.Style) -> posts.Style:
    return replace(free, **{side: getattr(style, side) for side in bound})


def make_batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Make a batch of posts with several summaries each, as branches.

    Its tensors are ids, positions, labels and weights [B, L], and may_see [B, 1, L, L]. A branch sees the post and
    itself, not the other branches, and its positions continue from the post's. So each summary is trained as if it were
    alone, and the post is read once.
    """
    examples = rng.random() < recipe.example_share
    size = recipe.batch_size // 2 if examples else recipe.batch_size  # rows with an example are twice as long
    written = [write_example(rng, recipe.summaries_per_post, recipe.wish_share, examples) for _ in range(size)]
    prompts = tokenizer([context for context, _ in written]).input_ids
    branches = [tokenizer([summary + EOS for summary in group]).input_ids for _, group in written]
    length = max(len(p) + sum(map(len, group)) for p, group in zip(prompts, branches, strict=True))
    ids = torch.full((size, length), tokenizer.pad_token_id)
    labels, positions, branch = torch.zeros_like(ids), torch.zeros_like(ids), torch.full_like(ids, -1)
    weights = torch.zeros(size, length)
    for row, (prompt, group) in enumerate(zip(prompts, branches, strict=True)):
        split = len(prompt)
        ids[row, :split], positions[row, :split], branch[row, :split] = torch.tensor(prompt), torch.arange(split), 0
        labels[row, : split - 1], weights[row, : split - 1] = torch.tensor(prompt[1:]), recipe.post_weight
        start = split
        for number, summary in enumerate(group, start=1):
            # The last prompt token has one next token per branch, so each branch starts with a copy of it.
            body, end = [prompt[-1], *summary[:-1]], start + len(summary)
            ids[row, start:end], labels[row, start:end] = torch.tensor(body), torch.tensor(summary)
            positions[row, start:end], branch[row, start:end] = torch.arange(split - 1, split - 1 + len(body)), number
            weights[row, start:end], start = 1.0, end
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    of_query, of_key = branch.unsqueeze(2), branch.unsqueeze(1)
    before_copy = positions.unsqueeze(1) < positions.unsqueeze(2)  # hides the original of the copied token
    may_see = causal & ((of_key == of_query) | ((of_key == 0) & before_copy))
    return {"ids": ids, "positions": positions, "labels": labels, "weights": weights, "may_see": may_see.unsqueeze(1)}


def make_copy_batch(rng: random.Random, words: list[int], recipe: Recipe, length: int = 64) -> dict[str, torch.Tensor]:
    """Make a batch of repeated random words, with another period in each row.

    The next word then depends on the content and not on the position. The fields are those of `make_batch`; the first
    round of words has no weight.
    """
    ids, weights = torch.zeros(recipe.batch_size, length, dtype=torch.long), torch.zeros(recipe.batch_size, length)
    for row in range(recipe.batch_size):
        period = rng.randint(6, 30)
        ids[row] = torch.tensor(rng.sample(words, period)).repeat(length // period + 1)[:length]
        weights[row, period:-1] = 1.0
    return {
        "ids": ids,
        "positions": torch.arange(length).expand_as(ids),
        "labels": ids.roll(-1, 1),
        "weights": weights,
        "may_see": torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), 1, -1, -1),
    }


def weighted_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Return the weighted loss, and the mean negative log-likelihood of the summary tokens (nats per token)."""
    logits = model(
        input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=batch["may_see"], use_cache=False
    ).logits
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    weights = batch["weights"]
    return (nll * weights).sum() / weights.sum(), nll[weights == 1.0].mean().item()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate: linear warm-up, then cosine decay to a tenth."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def sample_check(model: Any, tokenizer: Any, cases: int, seed: int) -> dict[str, float]:
    """Return the shares of well-formed and of faithful samples at temperature 1, for posts generated from `seed`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    prompts = [posts.write_post(rng).prompt for _ in range(cases)]
    tokenizer.padding_side = "left"
    verdicts = []
    for start in range(0, cases, 100):
        chunk = prompts[start : start + 100]
        inputs = tokenizer(chunk, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=48)
        for prompt, ids in zip(chunk, out[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
            finished = tokenizer.eos_token_id in ids
            text = tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)] if finished else ids)
            verdicts.append(posts.grade_summary(prompt, text, finished))
    return {
        "cases": cases,
        "well_formed": sum(v.well_formed for v in verdicts) / cases,
        "faithful": sum(v.faithful for v in verdicts) / cases,
        "mean_facts": sum(v.facts for v in verdicts) / cases,
    }


def pretrain(recipe: Recipe, out: Path) -> dict[str, float]:
    """Train the tiny base, save it in `out`, and return its losses in nats per token."""
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(recipe.seed + 1)
    vocabulary = (*posts.SUBJECTS, *posts.VERBS, *posts.OBJECTS)
    words = [ids[0] for w in vocabulary if len(ids := tokenizer(f" {w}").input_ids) == 1]
    began = time.time()
    recent: list[float] = []
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        batch = make_copy_batch(rng, words, recipe) if step < recipe.copy_steps else make_batch(rng, tokenizer, recipe)
        loss, summary_nll = weighted_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], summary_nll]
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{recipe.steps}  summary nll {sum(recent) / len(recent):.4f} nats/token"
                f"  {time.time() - began:.0f} s",
                flush=True,
            )
    model.eval()
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    result = {
        "parameters": model.num_parameters(),
        "summary_nll_last_100_steps": sum(recent) / len(recent),
        **sample_check(model, tokenizer, recipe.check_cases, seed=recipe.seed + 2),
    }
    (out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = Recipe.model_validate(yaml.safe_load(args.recipe.read_text()))
    print(json.dumps(pretrain(recipe, args.out)))


if __name__ == "__main__":
    main()
