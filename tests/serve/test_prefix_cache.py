"""What comes again at the beginning of a prompt is read once for a user, and never for another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running_server import PROMPT, Running, serving

import prlhf

SYSTEM = "my boss lost cars. my sister hid lamps. my pilot found boats and more boats. "
FIRST, SECOND = SYSTEM + PROMPT, SYSTEM + "POST: my uncle broke rings.\nTL;DR:"


def ask(running: Running, prompt: Any, user: str, **more: Any) -> tuple[str, int]:
    """The text, and how many tokens of the prompts were not read again."""
    found = running.client().completions.create(
        model="tiny", prompt=prompt, user=user, **{"temperature": 0, "max_tokens": 12} | more
    )
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    return found.choices[0].text, found.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize("kind", ["trained", "gated"])
def test_a_prompt_that_comes_again(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Users act in the prompt, or in the adapter."""
    run: Path = request.getfixturevalue(kind)
    loaded = prlhf.load(run, device="cpu")
    expected = {
        (prompt, user): loaded.generate(prompt, user, temperature=0, max_new_tokens=12)
        for prompt in (FIRST, SECOND)
        for user in ("ann", "bob", "generic")
    }
    choices = tmp_path / "kept.sqlite"
    with serving(run, adapt_every=0, feedback=choices) as running:
        texts: dict[Any, list[int]] = {}
        for prompt in (FIRST, SECOND, SECOND):
            for user in ("ann", "bob", "generic"):
                text, cached = ask(running, prompt, user)
                assert text == expected[prompt, user]
                texts.setdefault(user, []).append(cached)
        for first, second, third in texts.values():
            assert 0 == first < second < third
        numbers = httpx.get(f"{running.url}/metrics").text
        assert f"prlhf_reused_tokens_total {sum(map(sum, texts.values())):.1f}" in numbers
        text = expected[SECOND, "generic"]
        assert ask(running, f"{SECOND}{text} and", "generic")[1] > texts["generic"][2]  # nor is what was written


def test_several_responses_and_prompts_count_once(trained: Path) -> None:
    with serving(trained, adapt_every=0) as running:
        assert ask(running, FIRST, "cat", n=3)[1] == 0
        (_, once), (_, both) = ask(running, FIRST, "cat", n=2), ask(running, [FIRST, SECOND], "cat", n=2)
        assert once < both < 2 * once


def test_without_it_all_is_read_again(trained: Path) -> None:
    with serving(trained, adapt_every=0, prefix_cache=0) as running:
        assert [ask(running, FIRST, "ann")[1] for _ in range(2)] == [0, 0]


def test_whoever_was_learned_meanwhile_reads_again(trained: Path, tmp_path: Path, alone: Callable[..., str]) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("feedback.sqlite*")))
    choices = tmp_path / "choices.jsonl"
    row = (
        '{"prompt": "POST: my boss lost cars.\\nTL;DR:", "chosen": " cars.", "rejected": " boats.", "user_id": "%s"}\n'
    )
    choices.write_text(row % "ann")
    with serving(run, adapt_every=0) as running:
        for user in ("ann", "bob"):
            ask(running, FIRST, user)
        prlhf.adapt(run, choices, device="cpu")
        (text, ann), (other, bob) = ask(running, FIRST, "ann"), ask(running, FIRST, "bob")
    assert ann == 0 < bob
    assert other == alone("bob", FIRST, max_new_tokens=12)
    assert text == prlhf.load(run, device="cpu").generate(FIRST, "ann", temperature=0, max_new_tokens=12)
