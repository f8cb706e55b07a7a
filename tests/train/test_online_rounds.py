"""What a round writes, known before the run; and its numbers, on literal rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import TrainConfig
from prlhf.dataset import User, prompt_id
from prlhf.forum.posts import Style, sentences, write_post
from prlhf.forum.tastes import Taste, describe
from prlhf.generate.readers import Reader
from prlhf.online.candidates import Candidate
from prlhf.online.plan import pairs_of_round
from prlhf.online.summary import known_tastes, summarise_round

PROMPTS = [f"prompt {i}" for i in range(40)]
USERS = [Reader(user, i, "") for i, user in enumerate(("ann", "bob", "cat"), start=1)]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(objective="online-dpo", reward=Path("rm"), **{"round_prompts": 30} | changes)


def test_users_take_turns_and_the_generic_user_has_a_share() -> None:
    pairs = pairs_of_round(PROMPTS, USERS, 0.4, config(), number=1)
    assert Counter(reader.id for _, reader in pairs) == {"ann": 6, "bob": 6, "cat": 6, "generic": 12}
    assert len({(prompt_id(prompt), reader.id) for prompt, reader in pairs}) == 30


def test_rounds_differ_and_can_be_repeated() -> None:
    first, again, second = (pairs_of_round(PROMPTS, USERS, 0.5, config(), number) for number in (1, 1, 2))
    assert first == again != second
    assert pairs_of_round(PROMPTS, USERS, 0.5, config(seed=1), 1) != first


def test_no_more_than_there_are_prompts() -> None:
    pairs = pairs_of_round(PROMPTS[:2], USERS, 0.0, config(), number=1)
    assert Counter(reader.id for _, reader in pairs) == {"ann": 2, "bob": 2, "cat": 2}


POST = write_post(random.Random(0), short=True)


def row(user: str, candidate: int, reward: float, **changes: Any) -> Candidate:
    values: dict[str, Any] = {"policy_step": 0, "prompt_id": "p", "prompt": POST.prompt, "user_index": 1, "tokens": 4}
    values |= {"response": "what?", "finished": True}
    return Candidate(user_id=user, candidate=candidate, reward=reward, **values | changes)


def test_numbers_of_a_round() -> None:
    rows = [
        row("ann", 0, 1.0, log_prob=-6.0, reference_log_prob=-8.0, shuffled_reward=0.5),
        row("ann", 1, 3.0, log_prob=-3.0, reference_log_prob=-4.0, shuffled_reward=1.5, finished=False),
        row("ann", 2, 5.0),
        row("bob", 0, 2.0, tokens=8),
        row("bob", 1, 2.0, tokens=8),
    ]
    found = summarise_round(rows, {})
    assert found == {
        "written": 5,
        "comparisons": 1,
        "reward": pytest.approx(13 / 5),
        "reward_by_user": {"ann": 3.0, "bob": 2.0},
        "shuffled_reward": 1.0,
        "margin": 2.0,  # the response with the least reward that was cut: 5 - 3
        "without_spread_by_user": {"ann": 0.0, "bob": 1.0},
        "kl": 1.5,
        "entropy": 1.0,  # 9 nats for 4 tokens and an end, and 4 tokens
        "tokens": pytest.approx(28 / 5),
        "finished": 0.8,
    }


def test_the_oracle_is_another_judge() -> None:
    """It says how much of what the reward prefers is well-formed, and whether the user would agree."""
    users = [User("ann", 1, "", describe(Taste(length=-1)), 1, 1, True), User("bob", 2, "", "", 1, 1, True)]
    tastes = known_tastes(users)
    good, bad = "".join(sentences(list(POST.facts[:1]), Style(1, 1, 0))), "no summary"
    rows = [row("ann", 0, 1.0, response=good), row("ann", 1, 0.0, response=bad)]
    rows += [row("generic", 0, 0.0, response=good), row("generic", 1, 1.0, response=bad)]
    found = summarise_round(rows, tastes)
    assert (found["well_formed"], found["faithful"]) == (0.5, 0.5)
    assert found["oracle_agrees_by_user"] == {"ann": 1.0, "generic": 0.0}
    assert known_tastes([User("bob", 1, "", "", 1, 1, True)]) == {}
    assert "well_formed" not in summarise_round(rows, {})


def test_nan_is_not_counted() -> None:
    found = summarise_round([row("ann", 0, 1.0), row("ann", 1, 2.0)], {})
    assert found["kl"] is None
    assert found["entropy"] is None
    assert found["shuffled_reward"] is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
