"""The synthetic forum and its checker."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.forum import posts

PROMPT = "SUBREDDIT: r/work\nTITLE: a strange week.\nPOST: on monday my boss sold boats. nobody warned me. " + (
    "on tuesday my aunt lost hats twice. on friday my coach hid keys. on sunday my uncle fixed lamps.\nTL;DR:"
)


@given(st.integers(0, 10**6))
def test_what_the_world_writes_passes_its_own_check(seed):
    rng = random.Random(seed)
    post, style = posts.write_post(rng), posts.draw_style(rng)
    order = style.order if style.facts > 1 else 0
    verdict = posts.grade_summary(post.prompt, posts.write_summary(post, rng, style))
    assert verdict == posts.Verdict(True, True, style.facts, order, style.tone)


def test_every_style_is_drawn():
    rng = random.Random(0)
    assert len({posts.draw_style(rng) for _ in range(500)}) == 4 * 2 * 3


@given(st.integers(0, 10**6))
def test_a_summary_of_another_post_is_well_formed_and_not_faithful(seed):
    rng = random.Random(seed)
    post, other = posts.write_post(rng), posts.write_post(rng)
    if set(post.facts) & set(other.facts):
        return
    verdict = posts.grade_summary(post.prompt, posts.write_summary(other, rng))
    assert verdict.well_formed
    assert not verdict.faithful


@given(st.integers(0, 10**6))
def test_posts_state_four_to_six_facts_in_the_order_of_the_week(seed):
    post = posts.write_post(random.Random(seed))
    assert 4 <= len(post.facts) <= 6
    days = [posts.DAYS.index(fact[0]) for fact in post.facts]
    assert days == sorted(set(days))
    assert [post.prompt.index(posts.clause(fact)) for fact in post.facts] == sorted(
        post.prompt.index(posts.clause(fact)) for fact in post.facts
    )


@pytest.mark.parametrize(
    "response",
    [
        "",
        "on monday",
        " on monday my boss sold boats",  # no period
        " on monday my boss sold boats. ",
        " on monday my boss sold boats. nobody warned me.",
        " on monday my boss sold boats twice.",
        " on monday my boss sold boats. on monday my boss sold boats.",  # states a fact twice
        " on monday my boss sold boats. on sunday my uncle fixed lamps. on tuesday my aunt lost hats.",  # not ordered
        " on monday my dear boss sold boats. on tuesday my aunt lost hats.",  # in two tones
        " on monday my kind boss sold boats.",
        " on someday my boss sold boats.",
        " on monday my boats sold boss.",  # no subject is called boats
        " on monday my boss broke broke broke.",
        "".join(f" on {day} my boss sold boats." for day in posts.DAYS[:5]),  # five facts
    ],
)
def test_ill_formed(response):
    assert posts.grade_summary(PROMPT, response) == posts.Verdict(False, False)


def test_cut_off_by_a_token_limit_is_not_well_formed():
    assert posts.grade_summary(PROMPT, " on monday my boss sold boats.").well_formed
    assert not posts.grade_summary(PROMPT, " on monday my boss sold boats.", finished=False).well_formed


def test_one_changed_word_is_well_formed_and_not_faithful():
    assert posts.grade_summary(PROMPT, " on monday my boss sold hats.") == posts.Verdict(True, False, 1, 0, 0)


def test_the_same_seed_writes_the_same_post():
    assert posts.write_post(random.Random(3)) == posts.write_post(random.Random(3))
    assert posts.write_post(random.Random(3)) != posts.write_post(random.Random(4))


def test_the_style_of_a_summary_is_read_off():
    backwards = " on tuesday my dear aunt lost hats. on monday my dear boss sold boats."
    assert posts.grade_summary(PROMPT, backwards) == posts.Verdict(True, True, 2, -1, 1)
    assert posts.grade_summary(PROMPT, " on monday my awful boss sold boats.") == posts.Verdict(True, True, 1, 0, -1)


def test_an_example_before_the_post_states_nothing():
    example = PROMPT.replace("boats", "pianos") + " on monday my boss sold pianos.\n\n"
    assert posts.grade_summary(example + PROMPT, " on monday my boss sold boats.").faithful
    assert not posts.grade_summary(example + PROMPT, " on monday my boss sold pianos.").faithful
