"""The synthetic forum of the demo data sets: posts, summaries, and an exact checker of summaries.

A *fact* is (day, subject, verb, object), written as `on monday my sister sold boats`. A post states four to six facts
on different days of one week; a summary states one to four of them without the post's filler. Summaries differ in three
ways: the number of facts, their order (the week's or backwards), and the tone towards people (`my dear sister`,
`my sister`, `my awful sister`). The grammar is known, so the checker decides exactly and without a model whether a
response is well-formed and faithful to its post, and what its style is. This module has no tensors, users or
preferences.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

SUBJECTS = tuple(
    "sister brother boss neighbor roommate uncle aunt cousin teacher coach landlord dentist doctor manager "
    "partner friend nephew niece mother father grandma grandpa barber plumber lawyer waiter tenant editor "
    "captain tutor banker baker nurse pilot singer farmer driver tailor florist mechanic".split()
)
VERBS = tuple(
    "sold lost broke fixed painted stole found burned moved washed hid borrowed returned dropped ruined bought "
    "ordered repaired cleaned opened closed locked shipped wrapped traded rented buried polished photographed "
    "measured ignored praised mailed copied tested labeled guarded counted shared donated".split()
)
OBJECTS = tuple(
    "boats cars bikes lamps sofas tables guitars pianos phones laptops cameras watches rings necklaces jackets "
    "coats hats boots tents kayaks ladders drills hammers shovels mowers fences gates doors windows mirrors "
    "carpets curtains ovens kettles blenders toasters fridges freezers printers scanners radios drones "
    "telescopes violins trumpets drums puzzles paintings statues vases clocks calendars notebooks letters "
    "packages tickets passports wallets suitcases umbrellas".split()
)
SUBREDDITS = ("relationships", "advice", "family", "work", "roommates", "neighbors", "tifu", "legal")
TITLES = (
    "what would you do?",
    "am i wrong here?",
    "need some advice.",
    "how do i handle this?",
    "a strange week.",
    "is this normal?",
    "i do not know what to think.",
    "please help me decide.",
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
TAILS = (
    "",
    "",
    "",
    " again",
    " without asking",
    " for no reason",
    " at night",
    " and laughed",
    " twice",
    " in a hurry",
)
FILLERS = (
    "i do not know what to say.",
    "nobody warned me.",
    "sorry for the long post.",
    "it has been a hard month.",
    "we used to get along.",
    "thanks for reading.",
)
MIN_FACTS, MAX_FACTS = 1, 4
TONES = {1: " dear", 0: "", -1: " awful"}  # the word before people: warm, plain, cold

Fact = tuple[str, str, str, str]

_FACT = re.compile(r"on (\w+) my (\w+) (\w+) (\w+)")
_SENTENCE = re.compile(r" on (\w+) my( dear| awful)? (\w+) (\w+) (\w+)\.")
_SUMMARY = re.compile(rf"(?:{_SENTENCE.pattern}){{{MIN_FACTS},{MAX_FACTS}}}")


@dataclass(frozen=True)
class Post:
    """A post as a prompt (in the `TL;DR` format of the paper's section 5.1), and its facts in order."""

    prompt: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Style:
    """The style of a summary. `order`: 1 the week's, -1 backwards; `tone`: 1 warm, 0 plain, -1 cold."""

    facts: int
    order: int = 1
    tone: int = 0


@dataclass(frozen=True)
class Verdict:
    """The checker's result for one response."""

    well_formed: bool  # one to four facts in one order and one tone, nothing else, and not cut off
    faithful: bool  # well-formed, and every fact is in the post
    facts: int = 0  # number of facts; 0 if not well-formed
    order: int = 0  # 1: the week's, -1: backwards, 0: a single fact, or not well-formed
    tone: int = 0


def clause(fact: Fact, tone: int = 0) -> str:
    """Return a fact as a clause in the given tone."""
    day, subject, verb, obj = fact
    return f"on {day} my{TONES[tone]} {subject} {verb} {obj}"


def write_post(rng: random.Random, short: bool = False) -> Post:
    """Write a post of four to six facts without repeated words. `short`: four facts without tails."""
    count = 4 if short else rng.randint(4, 6)
    days = [DAYS[i] for i in sorted(rng.sample(range(len(DAYS)), count))]
    words = (rng.sample(words, count) for words in (SUBJECTS, VERBS, OBJECTS))
    facts = tuple(zip(days, *words, strict=True))
    sentences = [f"{clause(fact)}{'' if short else rng.choice(TAILS)}." for fact in facts]
    sentences.insert(rng.randint(0, count), rng.choice(FILLERS))
    prompt = f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\nTITLE: {rng.choice(TITLES)}\nPOST: {' '.join(sentences)}\nTL;DR:"
    return Post(prompt, facts)


def draw_style(rng: random.Random) -> Style:
    """Draw a style uniformly, as the base writes without a wish."""
    return Style(rng.randint(MIN_FACTS, MAX_FACTS), rng.choice((1, -1)), rng.choice(tuple(TONES)))


def write_summary(post: Post, rng: random.Random, style: Style | None = None) -> str:
    """Write a well-formed, faithful summary in `style` (default: a random one), with its leading space."""
    style = style or draw_style(rng)
    return "".join(sentences(choose_facts(post, style.facts, rng), style))


def choose_facts(post: Post, count: int, rng: random.Random) -> list[Fact]:
    """Draw `count` of the post's facts, in the order of the post."""
    return [post.facts[i] for i in sorted(rng.sample(range(len(post.facts)), count))]


def sentences(facts: list[Fact], style: Style) -> list[str]:
    """Return the facts, given in the week's order, as sentences in the style's order and tone, with leading spaces."""
    return [f" {clause(fact, style.tone)}." for fact in facts[:: style.order]]


def grade_summary(prompt: str, response: str, finished: bool = True) -> Verdict:
    """Check `response` to `prompt` exactly. `finished`: it was not cut off at the token limit.

    The last post of the prompt counts; there may be examples before it.
    """
    text = response.rstrip("\n")
    text = text if text.startswith(" ") else f" {text}"
    if not (finished and _SUMMARY.fullmatch(text)):
        return Verdict(False, False)
    found = _SENTENCE.findall(text)
    facts: list[Fact] = [(day, subject, verb, obj) for day, _, subject, verb, obj in found]
    known = all(d in DAYS and s in SUBJECTS and v in VERBS and o in OBJECTS for d, s, v, o in facts)
    tones = {tone for _, tone, *_ in found}
    order = _order_of(facts) if known else None
    if order is None or len(tones) > 1:
        return Verdict(False, False)
    stated = set(_FACT.findall(prompt[prompt.rfind("POST:") :]))
    tone = next(pole for pole, word in TONES.items() if word in tones)
    return Verdict(True, set(facts) <= stated, len(facts), order if len(facts) > 1 else 0, tone)


def _order_of(facts: list[Fact]) -> int | None:
    """1 if each day is later in the week than the previous one, -1 if each is earlier, else None.

    So no fact is stated twice.
    """
    steps = {after > before for before, after in itertools.pairwise(DAYS.index(fact[0]) for fact in facts)}
    repeats = len({fact[0] for fact in facts}) < len(facts)
    return None if repeats or len(steps) > 1 else -1 if steps == {False} else 1
