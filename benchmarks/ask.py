r"""Questions that are chosen against questions at random: how well a new person is learned from n answers.

    prlhf prep demo-crowd --users 100 --comparisons 24 --reveal 0 --unseen-fraction 0.2 --out crowd/data
    prlhf train --dataset crowd/data --no-user-text --user-in adapter --lora-r 16 --lora-alpha 32 --lr 2e-3 --alpha 1 \
        --batch-size 8 --nll 0.5 --warmup-steps 10 --max-steps 700 --out crowd/run
    python -m benchmarks.ask crowd/run --seeds 0 1 2                       # --json FILE for the numbers

The people are those of the run's demo-crowd whom it did not train on. All are asked about one pool of pairs in the
manner of demo-crowd, and tested on other pairs, for each seed new ones; they answer by their true taste, and wrong with
the probability `--noise`. Accuracy is the mean over people in percent, by margins that are linear in the person;
`--read N` reads true margins after N questions, too, of people learned as `prlhf adapt` does (first seed). The whole
pool: the accuracy if all of its pairs are answered, right. Intervals are 95 %, by resampling people.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.adapt.questions import best_question, posterior_from
from prlhf.data.demo import fresh_post
from prlhf.data.demo_profiles import PROFILES, contrast
from prlhf.forum.posts import grade_summary
from prlhf.forum.tastes import Taste, prefers, understand
from prlhf.progress import Progress

WAYS = ("chosen", "random")
Answers = list[tuple[int, int]]  # numbers of pairs, and 1 if the first response is better, -1 if not


@dataclass(frozen=True)
class Pairs:
    """Pairs of summaries, and at the generic user margins [n] and slopes [n, c] of the first over the second."""

    texts: Sequence[tuple[str, str, str]]
    encoded: Sequence[Any]
    margins: Tensor
    slopes: Tensor
    found: dict[tuple[tuple[int, int], ...], int] = field(default_factory=dict)

    def signs(self, taste: Taste) -> Tensor:
        """1 where somebody of this taste prefers the first response, -1 where the second [n]."""
        found = [prefers(taste, grade_summary(p, a), grade_summary(p, b)) for p, a, b in self.texts]
        return torch.tensor(found, dtype=torch.float64)

    def answers(self, taste: Taste) -> Answers:
        """All answers of somebody of this taste."""
        return list(enumerate(self.signs(taste).int().tolist()))

    def best(self, answers: Answers) -> int:
        """The number of the question that is chosen after these answers; found once for all who gave the same."""
        if (after := tuple(answers)) not in self.found:
            closed = {number for number, _ in answers}
            left = [number for number in range(len(self.texts)) if number not in closed]
            best = best_question(self.margins, self.slopes, posterior_from(self.margins, self.slopes, answers), left)
            assert best is not None
            self.found[after] = best[0]
        return self.found[after]

    def accuracy(self, signs: Tensor, z: Tensor) -> float:
        """How often somebody at z chooses as these signs say; 0 to 1."""
        return float(((self.margins + self.slopes @ z) * signs > 0).double().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--questions", type=int, nargs="+", default=[2, 4, 8, 10, 16, 20])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--pool", type=int, default=240, help="pairs to ask about")
    parser.add_argument("--test", type=int, default=120, help="pairs to be tested on")
    parser.add_argument("--noise", type=float, default=0.0, help="the probability of a wrong answer")
    parser.add_argument("--read", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    args = parser.parse_args()
    from prlhf_cli.bars import STDERR, Bars
    from prlhf_cli.lines import Lines

    found = measure(
        args.run, args.seeds, args.questions, args.people, (args.pool, args.test), args.noise, args.read,
        Bars() if STDERR.is_terminal else Lines(),
    )  # fmt: skip
    print(as_table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(
    run: Path,
    seeds: Sequence[int],
    questions: Sequence[int],
    people: int,
    sizes: tuple[int, int],
    noise: float,
    read: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """Accuracies by way and number of questions: [seeds, people] each; `read`: those by true margins."""
    from prlhf.adapt.prior import prior_for
    from prlhf.adapt.run import tables_of
    from prlhf.dataset import read_prepared
    from prlhf.model.checkpoint import model_folder
    from prlhf.model.per_user import trained_on
    from prlhf.model.rewards import load_rewards

    folder = model_folder(run)
    trained, rewards = load_rewards(run, "cpu", progress=progress)
    rewards.model.requires_grad_(False)
    prior, _ = prior_for(folder, tables_of(folder), trained, rewards, progress)
    unseen = [user for user in read_prepared(Path(trained_on(folder))).users if not user.seen][:people]
    tastes = [understand(user.preference) for user in unseen]
    pairs = [[read_pairs(trained, rewards, prior, size, f"{part}-{seed}", progress)
              for part, size in enumerate(sizes)] for seed in seeds]  # fmt: skip

    def accuracies(asked: Sequence[Sequence[Answers]]) -> list[list[float]]:
        """By the answers of each person for each seed."""
        return [
            [test.accuracy(test.signs(taste), mode(pool, answers)) for taste, answers in zip(tastes, one, strict=True)]
            for (pool, test), one in zip(pairs, asked, strict=True)
        ]

    found: dict[str, Any] = {
        "people": len(tastes), "seeds": list(seeds), "pool": sizes[0], "test": sizes[1], "noise": noise,
        "generic": accuracies([[[] for _ in tastes] for _ in seeds]),
        "whole pool": accuracies([[pool.answers(taste) for taste in tastes] for pool, _ in pairs]),
        "linear": {way: {} for way in WAYS}, "read": {way: {} for way in WAYS},
    }  # fmt: skip
    for way in WAYS:
        progress.start(f"asking, {way}", len(seeds) * len(tastes))
        asked = [[ask(way, pool, taste, max(questions), noise, f"{seed}-{number}", progress)
                  for number, taste in enumerate(tastes)]
                 for seed, (pool, _) in zip(seeds, pairs, strict=True)]  # fmt: skip
        progress.finish()
        for n in questions:
            found["linear"][way][n] = accuracies([[answers[:n] for answers in one] for one in asked])
        for n in read:
            some = [answers[:n] for answers in asked[0]]
            found["read"][way][n] = [true_accuracies(rewards, prior, pairs[0], tastes, some, progress)]
    return found


def read_pairs(trained: Any, rewards: Any, prior: Any, count: int, part: str, progress: Progress) -> Pairs:
    """So many pairs on new posts, each in one dimension of taste, in random order; read once as the generic user."""
    from prlhf.adapt.slopes import margins_and_slopes
    from prlhf.dataset import Comparison, prompt_id

    rng, known, texts = random.Random(f"ask-{part}"), set[str](), []
    for _ in range(count):
        post = fresh_post(rng, known, short=True)
        texts.append((post.prompt, *contrast(post, rng.choice(list(PROFILES.values())), 2, rng)))
    rows = [Comparison(str(i), p, a, b, "", 0, "", prompt_id(p), False) for i, (p, a, b) in enumerate(texts)]
    encoded = [trained.encoder().comparison(row) for row in rows]
    progress.start("reading pairs", count)
    found = margins_and_slopes(rewards, encoded, prior.center.repeat(count, 1), prior.loadings, progress)
    progress.finish()
    return Pairs(texts, encoded, *found)


def ask(way: str, pool: Pairs, taste: Taste, count: int, noise: float, seed: str, progress: Progress) -> Answers:
    """The answers to so many questions: chosen by expected information, or random ones."""
    drawn, signs = random.Random(seed), pool.signs(taste)
    order = drawn.sample(range(len(signs)), len(signs))
    wrong = {number for number in range(len(signs)) if drawn.random() < noise}  # the same for both ways
    answers: Answers = []
    while len(answers) < count:
        number = pool.best(answers) if way == "chosen" else order[len(answers)]
        answers.append((number, int(signs[number]) * (-1 if number in wrong else 1)))
    progress.advance(1)
    return answers


def mode(pool: Pairs, answers: Answers) -> Tensor:
    return posterior_from(pool.margins, pool.slopes, answers).modes[0]


def true_accuracies(
    rewards: Any,
    prior: Any,
    pairs: Sequence[Pairs],
    tastes: Sequence[Taste],
    asked: Sequence[Answers],
    progress: Progress,
) -> list[float]:
    """Accuracy of each person, learned with margins that are read again, and tested by true margins."""
    from prlhf.adapt.learn import posterior_of
    from prlhf.adapt.slopes import margins_and_slopes
    from prlhf.model.user_fits import Choices

    pool, test = pairs
    numbers = torch.tensor([number for answers in asked for number, _ in answers])
    signs = torch.tensor([sign for answers in asked for _, sign in answers], dtype=torch.float64)
    owners = torch.repeat_interleave(torch.arange(len(asked)), torch.tensor([len(answers) for answers in asked]))

    def read(some: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        rows = prior.center + at.float() @ prior.loadings.T
        data = [pool.encoded[number] for number in numbers[some].tolist()]
        margins, slopes = margins_and_slopes(rewards, data, rows, prior.loadings, progress)
        return margins * signs[some], slopes * signs[some].unsqueeze(1)

    choices = Choices(owners, pool.slopes[numbers] * signs.unsqueeze(1), pool.margins[numbers] * signs, len(asked))
    progress.start("learning", len(numbers))  # of reading each choice once more, which may take four rounds
    rows = prior.center + posterior_of(choices, read).modes.float() @ prior.loadings.T
    progress.finish()
    progress.start("testing", len(asked) * len(test.texts))
    found = []
    for row, taste in zip(rows, tastes, strict=True):
        at = row.repeat(len(test.encoded), 1)
        margins, _ = margins_and_slopes(rewards, test.encoded, at, prior.loadings, progress)
        found.append(float((margins * test.signs(taste) > 0).double().mean()))
    progress.finish()
    return found


def as_table(found: Mapping[str, Any]) -> str:
    lines = [f"{'questions':>9}{'chosen':>22}{'random':>22}{'chosen - random':>24}"]
    for kind in ("linear", "read"):
        for n in found[kind]["chosen"]:
            chosen, at_random = (np.array(found[kind][way][n]).mean(0) for way in WAYS)
            cells = [said(each) for each in (chosen, at_random, chosen - at_random)]
            lines.append(f"{n:9}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}" + ("  (true margins)" * (kind == "read")))
        if {10, 20} <= {int(n) for n in found[kind]["chosen"]}:
            chosen, at_random = (np.array(found[kind][way][n]).mean(0) for way, n in (("chosen", 10), ("random", 20)))
            lines.append(f"10 chosen - 20 random: {said(chosen - at_random)}")
    ends = [f"{name}: {said(np.array(found[name]).mean(0))}" for name in ("generic", "whole pool")]
    lines.append("; ".join([*ends, f"{found['people']} people, seeds {found['seeds']}"]))
    return "\n".join(lines)


def said(values: np.ndarray) -> str:
    """The mean over people in percent, and its interval."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (2000, len(values))).mean(1) * 100
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * values.mean():.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
