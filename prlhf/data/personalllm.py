"""PersonalLLM (arXiv 2409.20296): `namkoong-lab/PersonalLLM`, prompts with eight responses, scored by reward models.

A user is a mixture of ten reward models, with weights from a symmetric Dirichlet distribution, and chooses the response
with the higher weighted sum of standardized scores. A share of the users is unseen: `choices.jsonl` has their choices
between pairs of a pool that all of them share and that is not trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.messages import as_conversation
from prlhf.data.rows import EQUAL, DropCounts, Dropped, LoadedData, Row, RowReader, check_left
from prlhf.data.splits import draw_pool, draw_unseen, first_appearance, warn_of_shared_prompts
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.folders import folder_rows
from prlhf.source.hub import hub_parts
from prlhf.source.raw import RawRows
from prlhf.source.values import Malformed, any_text, column, kind, mapping, text

HUB = "namkoong-lab/PersonalLLM"
SPLITS = {"train": "train", "eval": "test"}  # our name -> the hub's
INSTEAD = "run: prlhf prep personalllm --source FOLDER --out data/personalllm (FOLDER holds train and test .parquet)"
REWARD_MODELS = (
    "gemma_2b", "gemma_7b", "mistral_raft", "mistral_ray", "mistral_weqweasdas", "llama3_sfairx", "oasst_deberta_v3",
    "beaver_7b", "oasst_pythia_7b", "oasst_pythia_1b",
)  # fmt: skip
RESPONSES = 8
USERS, COMPARISONS = 120, 100  # with a sixth of the users unseen, those of P-TTT (2609.35109, appendix H)
LARGEST = 1e6  # a score's absolute value is below it
TESTS = 1000  # held-out comparisons of all seen users together, and of all unseen ones


@dataclass(frozen=True)
class Item:
    """A prompt and its different responses, each with the scores of `REWARD_MODELS`."""

    id: str
    prompt: str
    responses: tuple[tuple[str, tuple[float, ...]], ...]


@data_set(
    "personalllm",
    uses="users comparisons unseen_fraction concentration shots bad_rows",
    defaults={"users": USERS, "comparisons": COMPARISONS},
)
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Draw users as mixtures of the reward models, and for each of them pairs of responses to choose from.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or there are too few prompts.
    """
    source, raw = _open(config.source)
    drops = DropCounts(EQUAL)
    reader = RowReader(config.bad_rows, drops, progress)
    items = {part: reader.read(part, rows, _converter(part), "prompt") for part, rows in raw.items()}
    for found in items.values():
        check_left(found, drops, source)
    count, comparisons = config.users or USERS, config.comparisons or COMPARISONS
    crowd = Crowd(items["train"], count, config.concentration, config.seed)
    drawn = draw_unseen(crowd.users, config.unseen_fraction, f"{config.seed}-personalllm-unseen")
    seen, unseen = ([user for user in crowd.users if (user in drawn) is new] for new in (False, True))

    rng = random.Random(f"{config.seed}-personalllm-rows")
    pool = draw_pool(items["train"], config.shots, f"{config.seed}-personalllm-pool", source) if unseen else []
    pairs = [replace(item, responses=tuple(rng.sample(item.responses, 2))) for item in pool]
    prompts = [item for item in items["train"] if item not in pool]
    if comparisons > len(prompts):
        why = f"comparisons = {comparisons}, and {source} has {len(prompts)} prompts to train on"
        raise PrlhfError(why, f"set it to at most {len(prompts)}")
    train = crowd.choose("train", seen, prompts, comparisons, rng)
    held_out = crowd.choose("eval", seen, items["eval"], _tests(seen), rng)
    held_out += crowd.choose("eval-unseen", unseen, items["eval"], _tests(unseen), rng)
    return LoadedData(
        train=train,
        eval=held_out,
        order=first_appearance(train),
        source=source,
        options={"users": count, "comparisons": comparisons}
        | config.model_dump(include={"unseen_fraction", "concentration", "shots", "bad_rows"}),
        counts=drops.report(),
        notes={"pool": len(pool)},
        warnings=warn_of_shared_prompts(train, held_out),
        choices=crowd.choose("choice", unseen, pairs, config.shots, rng),
    )


class Crowd:
    """The users: their weights of the reward models, and the choices that follow from them."""

    def __init__(self, items: Sequence[Item], users: int, concentration: float, seed: int) -> None:
        """Draw the weights of `users` users; scores are standardized by their mean and deviation over `items`."""
        rng = np.random.default_rng(random.Random(f"{seed}-personalllm-users").getrandbits(64))
        weights = rng.dirichlet([concentration] * len(REWARD_MODELS), users)
        self.users = [f"user-{number}" for number in range(1, users + 1)]
        self.weights = dict(zip(self.users, weights, strict=True))
        scores = np.array([scores for item in items for _, scores in item.responses])
        spread = scores.std(axis=0)
        self._scale = 1 / np.where(spread > 0, spread, 1.0)  # the mean does not change which response is better

    def choose(
        self, part: str, users: Sequence[str], items: Sequence[Item], each: int, rng: random.Random
    ) -> list[Row]:
        """Return `each` choices per user, as far as there are items, the users in turn.

        An item with two responses is that pair; of more responses, two are drawn. Of responses with equal rewards the
        one that was drawn first is chosen.
        """
        drawn = {user: rng.sample(items, min(each, len(items))) for user in users}
        turns = zip(*drawn.values(), strict=True) if drawn else ()
        return [
            self._row(f"{part}-{number}-{user}", user, item, rng)
            for number, turn in enumerate(turns, start=1)
            for user, item in zip(users, turn, strict=True)
        ]

    def _row(self, row_id: str, user: str, item: Item, rng: random.Random) -> Row:
        weights = self.weights[user] * self._scale
        (first, one), (second, other) = rng.sample(item.responses, 2)
        better = float(np.dot(weights, one)) >= float(np.dot(weights, other))
        chosen, rejected = (first, second) if better else (second, first)
        return Row(row_id, *as_conversation(item.prompt, chosen, rejected), user_id=user)


def _tests(users: Sequence[str]) -> int:
    return math.ceil(TESTS / max(len(users), 1))


def _converter(part: str) -> Callable[[Any, int], Item]:
    def convert(value: Any, number: int) -> Item:
        row = mapping(value)
        prompt = text(column(row, "prompt"), "prompt")
        found = dict(_responses(row))
        if len(found) < 2:
            raise Dropped(EQUAL)
        return Item(f"{part}-{number}", prompt, tuple(found.items()))

    return convert


def _responses(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...]]]:
    for number in range(1, RESPONSES + 1):
        name = f"response_{number}"
        said = any_text(column(row, name), name).strip()
        if said:
            yield said, tuple(_score(column(row, f"{name}_{model}"), f"{name}_{model}") for model in REWARD_MODELS)


def _score(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"'{name}' is {kind(value)}, not a number")
    if not abs(value) < LARGEST:
        raise Malformed(f"'{name}' is {value}, which is not a score")
    return float(value)


def _open(source: str | None) -> tuple[str, dict[str, RawRows]]:
    """The source for the manifest, and the rows of each part."""
    return (HUB, hub_parts(HUB, SPLITS, INSTEAD)) if source is None else (source, folder_rows(source, SPLITS))
