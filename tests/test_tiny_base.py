"""The bundled tiny base: its size, its card, and its responses."""

import json
import random
from dataclasses import replace

import pytest

from prlhf.forum import posts
from prlhf.forum.pretrain import sample_check
from prlhf.forum.tastes import write_wish
from prlhf.model.base import TINY, load_base


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
    """200 cases of the 1,000 behind the documented figures; the bounds allow for sampling error."""
    shares = sample_check(base.lm, base.tokenizer, cases=200, seed=11)
    assert shares["well_formed"] >= 0.95
    assert shares["faithful"] >= 0.87


def written_on_wish(base, side, pole):
    """The checker's results for 30 greedy responses to posts with a wish for one side of the style."""
    rng = random.Random(5)
    style = replace(posts.Style(2), **{side: pole})
    prompts = [write_wish(style, {side}, rng) + posts.write_post(rng).prompt for _ in range(30)]
    inputs = base.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    out = base.lm.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=48, do_sample=False)
    texts = base.tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [posts.grade_summary(p, t) for p, t in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize(
    ("side", "pole"), [("facts", 1), ("facts", 4), ("order", 1), ("order", -1), ("tone", 1), ("tone", -1)]
)
def test_it_follows_a_wish(base, side, pole):
    """Soft prompts and the oracle baseline depend on this."""
    verdicts = written_on_wish(base, side, pole)
    several = [v for v in verdicts if side != "order" or v.facts != 1]  # one fact has no order
    assert len(several) >= 10
    assert sum(getattr(v, side) == pole for v in several) / len(several) >= 0.85


@pytest.mark.slow
def test_a_thousand_samples_meet_the_targets(base):
    shares = sample_check(base.lm, base.tokenizer, cases=1000, seed=12)
    assert shares["well_formed"] >= 0.98
    assert shares["faithful"] >= 0.90
