"""The pool of pairs that questions are chosen from: a file, or responses that the run writes for given prompts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prlhf.adapt.known import KnownChoice, digest_of, read_users_of
from prlhf.config import AdaptConfig, GenerateConfig, PrepConfig
from prlhf.data import custom
from prlhf.data.rows import Row
from prlhf.dataset import GENERIC, Text
from prlhf.errors import PrlhfError
from prlhf.files import atomic_file
from prlhf.generate.baselines import baseline_of
from prlhf.generate.decoding import write
from prlhf.generate.pairs import read_prompts
from prlhf.generate.readers import Reader
from prlhf.generate.requests import plan_requests
from prlhf.model.checkpoint import Policy
from prlhf.model.user_store import read_users
from prlhf.parse import json_text
from prlhf.progress import Progress
from prlhf.source.formats import local_path

WRITERS = 32  # trained users, of whom some write for each prompt


def read_pool(path: Path, config: AdaptConfig, user: str, progress: Progress) -> list[Row]:
    """The pairs of a file for `user`, each once; which response stands as chosen does not matter.

    Raises:
        PrlhfError: there is no file, or a row is refused.
    """
    if not local_path(str(path)).is_file():
        raise PrlhfError(f"there is no file {path}", "give a file of pairs with --pool, or prompts with --prompts")
    asked = PrepConfig(dataset=str(path), eval_fraction=0.0, columns=config.columns, bad_rows=config.bad_rows)
    loaded = custom.load(asked, progress, user)
    for line in loaded.warnings:
        progress.note(f"warning: {line}")
    return list({pair_of(row): row for row in reversed(loaded.train)}.values())[::-1]


def pair_of(row: Row | KnownChoice) -> bytes:
    """What a pair is known by, whichever of its responses stands first."""
    return min(digest_of(row.prompt, row.chosen, row.rejected), digest_of(row.prompt, row.rejected, row.chosen))


def writers(folder: Path, seed: int) -> list[str]:
    """The ids of some trained users of the model in `folder`; nobody who was adapted writes for others."""
    adapted = read_users_of(folder)
    trained = [user for user, at in read_users(folder).index_of().items() if at not in adapted]
    return random.Random(seed).sample(trained, min(WRITERS, len(trained)))


def write_pool(
    path: Path, prompts: Path, policy: Policy, others: Sequence[str], config: AdaptConfig, progress: Progress
) -> None:
    """Let the run write responses to each prompt, as the generic user and as `others`; all pairs of them are the pool.

    Raises:
        PrlhfError: a prompt does not fit, no two responses differ, or the file cannot be written.
    """
    asked = list({str(prompt): prompt for prompt in read_prompts(prompts)}.values())
    settings = GenerateConfig(max_new_tokens=config.max_new_tokens, seed=config.seed)
    index, drawn = policy.index_of(), random.Random(config.seed)
    pairs = []
    for prompt in asked:
        some = drawn.sample(list(others), min(config.candidates - 1, len(others)))
        readers = [Reader(user, index[user], policy.user_texts.get(user, "")) for user in some]
        pairs += [(prompt, reader) for reader in (Reader(GENERIC, 0, ""), *readers)]
    requests = plan_requests(policy, pairs, baseline_of(settings), settings, progress)
    found: dict[str, set[str]] = {}
    progress.start("writing responses", len(requests))
    try:
        for ended in write(policy, requests, settings):
            for one in ended:
                found.setdefault(one.request.prompt_id, set()).add(one.text)
            progress.advance(len(ended))
    finally:
        progress.finish()
    texts = {request.prompt_id: request.prompt for request in requests}
    rows = [row for each, responses in found.items() for row in _pairs(texts[each], responses)]
    if not rows:
        raise PrlhfError(f"no two responses to the prompts of {prompts} differ", "give more prompts, or --candidates")
    with atomic_file(path) as beside:
        beside.write_text("".join(json_text(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _pairs(prompt: Text, responses: Iterable[str]) -> list[dict[str, Any]]:
    kept = sorted(text for text in responses if text.strip())
    turns = [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for text in kept]
    return [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in itertools.combinations(turns, 2)]
