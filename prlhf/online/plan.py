"""What the rounds of a run write: which prompts, for whom. It depends on data and settings, so it is known before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.dataset import GENERIC, Comparison, Text, prompt_id
from prlhf.generate.baselines import baseline_of
from prlhf.generate.pairs import Pair
from prlhf.generate.readers import Reader
from prlhf.generate.requests import WriteRequest, plan_requests
from prlhf.model.checkpoint import Policy
from prlhf.model.user_models import user_model_of
from prlhf.progress import Progress

GROUPS = 8  # that are written at a time


def round_settings(config: TrainConfig, number: int) -> GenerateConfig:
    """How the candidates of round `number` are written; each round has random numbers of its own."""
    return GenerateConfig(
        best_of=config.candidates,
        reward=config.reward,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=1000 * config.seed + number,
        skip_long=config.skip_long,
        device=config.device,
        precision=config.precision,
        model=config.model,
        trust_remote_code=config.trust_remote_code,
        batch_size=GROUPS * config.candidates,
    )


def plan_rounds(policy: Policy, rows: Sequence[Comparison], progress: Progress) -> list[list[WriteRequest]]:
    """The requests of each round, to prompts of the training comparisons `rows`.

    Raises:
        PrlhfError: prompts do not leave room for a candidate, and `skip_long` does not leave them out.
    """
    config = policy.config
    prompts = list({prompt_id(row.prompt): row.prompt for row in rows}.values())
    users = [Reader(user, index, policy.user_texts.get(user, "")) for user, index in policy.index_of().items()]
    generic = 1 - config.alpha if user_model_of(config).personal else 0.0
    rounds = [pairs_of_round(prompts, users, generic, config, number) for number in range(1, config.rounds + 1)]
    distinct = {(prompt_id(pair[0]), pair[1].id): pair for pairs in rounds for pair in pairs}
    settings = round_settings(config, 1)
    requests = plan_requests(policy, list(distinct.values()), baseline_of(settings), settings, progress)
    known = {(request.prompt_id, request.user_id): request for request in requests}
    keys = ([(prompt_id(prompt), reader.id) for prompt, reader in pairs] for pairs in rounds)
    return [[known[key] for key in some if key in known] for some in keys]


def pairs_of_round(
    prompts: Sequence[Text], users: Sequence[Reader], generic: float, config: TrainConfig, number: int
) -> list[Pair]:
    """`round_prompts` pairs of a prompt and a reader, a share `generic` of them for the generic user.

    The others take turns; no pair is there twice, so a reader has at most as many as there are prompts.
    """
    rng = random.Random(f"{config.seed} {number}")
    for_generic = round(generic * config.round_prompts)
    turns = Counter(islice(cycle(rng.sample(range(len(users)), len(users))), config.round_prompts - for_generic))
    wanted = [*((users[place], count) for place, count in turns.items()), (Reader(GENERIC, 0, ""), for_generic)]
    return [(prompt, reader) for reader, count in wanted for prompt in rng.sample(prompts, min(count, len(prompts)))]
