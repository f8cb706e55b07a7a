"""People who were in no training, with choices to learn them from and others to be tested on; for `judge --few-shot`.

    python -m benchmarks.real_text.newcomers DATA TO                  # tastes made of those of DATA's users
    python -m benchmarks.real_text.newcomers DATA TO --given FOLDER   # FOLDER/train.jsonl to learn from, /test.jsonl

`DATA` is the prepared data set of the run. Tastes that are made are sums of two of the measures of style.py, and
choose the best and the worst of all responses to a held-out prompt; no prompt is both learned from and tested on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_text.scores import first_of_each
from benchmarks.real_text.style import letters_per_word, plain, warm_words_per_word, word_count
from prlhf.dataset import Comparison, Prepared, prompt_id, read_prepared, write_prepared

TASTES = {
    "short-warm": (-1, 0, 1),
    "long-cold": (1, 0, -1),
    "short-long-words": (-1, 1, 0),
    "long-short-words": (1, -1, 0),
    "long-words-cold": (0, 1, -1),
    "short-words-warm": (0, -1, 1),
}  # signs of words, letters per word and warm words
GAP = 1.5  # of the scores of the best and the worst response, in standard deviations of one measure
LEARNED = 32  # choices of a person to learn from, at most


def made(held_out: Sequence[Comparison], tested: int, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """The choices of `TASTES` between all responses to each held-out prompt: to learn from, and to test (`tested`)."""
    responses: dict[str, dict[str, Any]] = {}
    for row in held_out:
        there = responses.setdefault(row.prompt_id, {"prompt": row.prompt})
        there |= {plain(response): response for response in (row.chosen, row.rejected)}
    prompts = {name: found.pop("prompt") for name, found in responses.items()}
    texts = [text for found in responses.values() for text in found]
    values = np.array([_measures(text) for text in texts])
    scaled = dict(zip(texts, (values - values.mean(0)) / values.std(0), strict=True))
    learned, left = [], []
    for user, signs in TASTES.items():
        order = random.Random(f"{seed}\0{user}").sample(sorted(responses), len(responses))
        pairs = [(name, pair) for name in order if (pair := _apart(responses[name], signs, scaled))]
        rows = [_row(user, prompts[name], *pair) for name, pair in pairs]
        learned += rows[:LEARNED]
        left += rows[LEARNED:][:tested]
    return learned, left


def _apart(responses: Mapping[str, Any], signs: Sequence[int], scaled: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The best and the worst response, unless they are too near."""
    scores = {text: float(np.dot(signs, scaled[text])) / math.sqrt(2) for text in responses}
    best, worst = max(responses, key=scores.__getitem__), min(responses, key=scores.__getitem__)
    return (responses[best], responses[worst]) if scores[best] - scores[worst] >= GAP else None


def _measures(text: str) -> tuple[float, float, float]:
    warm = warm_words_per_word(text) or 0.0
    return math.log(max(1.0, word_count(text))), letters_per_word(text) or 0.0, math.sqrt(warm)


def given(folder: Path, tested: int) -> tuple[list[Comparison], list[Comparison]]:
    """The choices of `folder`, to learn from, and to test, at most `tested` of each person."""
    return list(_read(folder / "train.jsonl")), first_of_each(list(_read(folder / "test.jsonl")), tested)


def _read(path: Path) -> Iterator[Comparison]:
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        yield _row(found["user_id"], found["prompt"], found["chosen"], found["rejected"])


def _row(user: str, prompt: Any, chosen: Any, rejected: Any) -> Comparison:
    name = prompt_id(prompt)
    return Comparison(f"{user}-{name}", prompt, chosen, rejected, user, 0, "", name, seen=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--given", type=Path, help="folder with train.jsonl and test.jsonl, custom data")
    parser.add_argument("--tested", type=int, default=24, help="choices of each person that are tested")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = read_prepared(args.data)
    learned, left = given(args.given, args.tested) if args.given else made(data.eval, args.tested, args.seed)
    write_prepared(args.to, Prepared(data.train, left, data.users, {"dataset": "newcomers"}, choices=learned))
    print(f"{len({row.user_id for row in left})} people: {len(learned)} choices to learn from, {len(left)} to test")


if __name__ == "__main__":
    main()
