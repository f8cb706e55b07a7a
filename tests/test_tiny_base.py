"""The bundled tiny base: its size, its card, and what it writes."""

import json
import random

import pytest

from prlhf import world
from prlhf.model.base import TINY, load_base
from prlhf.pretrain import sample_check


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


def test_it_is_small(base):
    assert 1_000_000 <= base.lm.num_parameters() <= 2_000_000
    assert (TINY / "model.safetensors").stat().st_size <= 5_000_000


def test_the_card_states_what_was_measured(base):
    measured = json.loads((TINY / "training.json").read_text())
    card = (TINY / "README.md").read_text()
    assert measured["parameters"] == base.lm.num_parameters()
    for number in (measured["summary_nll_last_100_steps"], measured["well_formed"], measured["faithful"]):
        assert f"{number:.3f}" in card


def test_any_text_survives_its_tokenizer(base):
    text = "SUBREDDIT: r/työ\nTL;DR: 日本語 🎈 on monday"
    assert base.tokenizer.decode(base.tokenizer(text).input_ids) == text


def test_samples_follow_the_grammar_and_the_post(base):
    """200 cases of the 1,000 behind the documented figures; bounds leave room for sampling error."""
    shares = sample_check(base.lm, base.tokenizer, cases=200, seed=11)
    assert shares["well_formed"] >= 0.95
    assert shares["faithful"] >= 0.87


def test_it_heeds_a_wish_for_length(base):
    """What soft prompts can build on: mean facts stated, by the number asked for."""
    rng = random.Random(5)
    asked = {
        count: [world.write_wish(count, rng) + world.write_post(rng).prompt for _ in range(30)] for count in (1, 4)
    }
    stated = {}
    for count, prompts in asked.items():
        inputs = base.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        out = base.lm.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=48, do_sample=False
        )
        texts = base.tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        stated[count] = sum(world.check(p, t).facts for p, t in zip(prompts, texts, strict=True)) / len(texts)
    assert stated[1] <= 1.2
    assert stated[4] >= 3.5


@pytest.mark.slow
def test_a_thousand_samples_meet_the_targets(base):
    shares = sample_check(base.lm, base.tokenizer, cases=1000, seed=12)
    assert shares["well_formed"] >= 0.98
    assert shares["faithful"] >= 0.90
