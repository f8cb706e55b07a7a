"""Each setting of generation arrives where it acts, or stands in the rows that depend on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prlhf.config import GenerateConfig
from prlhf.dataset import Prepared
from prlhf.generate import decoding
from prlhf.generate.baselines import baseline_of
from prlhf.generate.decode_loop import DecodeRow
from prlhf.generate.output import form_of
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.generate.run import settings_of
from prlhf.generate.sampling import choose


def config(**changes: Any) -> GenerateConfig:
    return GenerateConfig(**({"out": Path("out.jsonl")} | changes))


def test_the_settings_of_the_decode_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class Loop:
        def __init__(self, *given: Any) -> None:
            seen.append(given)

        def run(self, rows: list[DecodeRow]) -> list[list[DecodeRow]]:
            return [rows]

    monkeypatch.setattr(decoding, "DecodeLoop", Loop)
    policy: Any = SimpleNamespace(model="the model", tokenizer=None)
    rows = [DecodeRow([1], None, 0), DecodeRow([2], None, 0), DecodeRow([3], None, 0)]
    asked = config(max_new_tokens=21, temperature=0.7, top_p=0.6, batch_size=2)
    assert list(decoding.by_loop(policy, rows, asked, decoding.End(frozenset({0})))) == [rows]
    model, size, room, _, temperature, top_p = seen[0]
    assert (model, size, room, temperature, top_p) == ("the model", 2, 21, 0.7, 0.6)


def test_every_request_draws_its_own_numbers() -> None:
    requests = [WriteRequest(prompt, "", [], user, 0, candidate=n) for prompt in "pq" for user in "ab" for n in (0, 1)]
    seeds = {row_seed(seed, request) for seed in (0, 1) for request in requests}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"out": Path("x.jsonl")}, ("jsonl", False)),
        ({"out": Path("x.parquet")}, ("parquet", False)),
        ({"out": Path("x")}, ("parquet", True)),
        ({"out": Path("x"), "shards": "jsonl"}, ("jsonl", True)),
        ({"out": Path("x"), "shards": "parquet"}, ("parquet", True)),
    ],
)
def test_the_form_of_the_output(changes: dict[str, Any], expected: tuple[str, bool]) -> None:
    assert form_of(config(**changes)) == expected


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.5), ("top_p", 0.5), ("max_new_tokens", 9), ("seed", 4), ("baseline", "base")]
)
def test_rows_have_the_settings_they_depend_on(key: str, value: Any) -> None:
    def settings(chosen: GenerateConfig) -> dict[str, Any]:
        return settings_of("run", "weights", baseline_of(chosen), chosen)

    assert settings(config(**{key: value})) == settings(config()) | {key: value}


def test_rows_of_a_baseline_have_data_and_examples() -> None:
    data = Prepared([], [], [], {"content_hash": "abc"})
    shown = config(baseline="in-context", examples=3)
    found = settings_of("run", "weights", baseline_of(shown, data), shown)
    assert (found["data"], found["examples"]) == ("abc", 3)


def test_top_p_and_temperature_act_when_a_token_is_chosen() -> None:
    """Of two tokens with 60 and 40 % the second is drawn, too, but not from the nucleus of a half, nor near 0."""
    logits = torch.tensor([0.6, 0.4]).log().expand(200, 2)
    seeds, steps = list(range(200)), [0] * 200
    assert 40 < int(choose(logits, seeds, steps).sum()) < 120
    assert int(choose(logits, seeds, steps, top_p=0.5).sum()) == 0
    assert int(choose(logits, seeds, steps, temperature=0.01).sum()) == 0
