"""The made-up forum behind the demo data sets: posts, summaries, and the checker that judges them.

A *fact* is (day, subject, verb, object), said as `on monday my sister sold boats`. A post states four to six facts,
each on another day of one week; a summary states one to four of them without the post's filler. Summaries differ in
three ways: how many facts, in the week's order or backwards, and how they speak of people (`my dear sister`,
`my sister`, `my awful sister`). Because the grammar is known, whether a response is well-formed and true to its post,
and its style, are decided exactly, without a model. Nothing here knows about tensors, users or preferences.
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
TONES = {1: " dear", 0: "", -1: " awful"}  # what stands before people: warm, plain, cold

Fact = tuple[str, str, str, str]

_FACT = re.compile(r"on (\w+) my (\w+) (\w+) (\w+)")
_SENTENCE = re.compile(r" on (\w+) my( dear| awful)? (\w+) (\w+) (\w+)\.")
_SUMMARY = re.compile(rf"(?:{_SENTENCE.pattern}){{{MIN_FACTS},{MAX_FACTS}}}")


@dataclass(frozen=True)
class Post:
    """A forum post as a prompt (`TL;DR` layout of the paper's section 5.1) and the facts it states, in order."""

    prompt: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Style:
    """How a summary is written. `order`: 1 the week's, -1 backwards; `tone`: 1 warm, 0 plain, -1 cold."""

    facts: int
    order: int = 1
    tone: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one response."""

    well_formed: bool  # one to four facts in one order and one tone, nothing else, ended by the model itself
    faithful: bool  # well-formed, and every fact stands in the post
    facts: int = 0  # facts stated, 0 where the response is not well-formed
    order: int = 0  # 1: the week's, -1: backwards, 0: one fact, or not well-formed
    tone: int = 0


def clause(fact: Fact, tone: int = 0) -> str:
    """A fact as a clause in one of the tones."""
    day, subject, verb, obj = fact
    return f"on {day} my{TONES[tone]} {subject} {verb} {obj}"


def write_post(rng: random.Random, short: bool = False) -> Post:
    """One post of four to six facts; no day, subject, verb or object comes twice. `short`: four, without tails."""
    count = 4 if short else rng.randint(4, 6)
    days = [DAYS[i] for i in sorted(rng.sample(range(len(DAYS)), count))]
    words = (rng.sample(words, count) for words in (SUBJECTS, VERBS, OBJECTS))
    facts = tuple(zip(days, *words, strict=True))
    sentences = [f"{clause(fact)}{'' if short else rng.choice(TAILS)}." for fact in facts]
    sentences.insert(rng.randint(0, count), rng.choice(FILLERS))
    prompt = f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\nTITLE: {rng.choice(TITLES)}\nPOST: {' '.join(sentences)}\nTL;DR:"
    return Post(prompt, facts)


def draw_style(rng: random.Random) -> Style:
    """Every number of facts, order and tone equally often: how the base writes unless asked otherwise."""
    return Style(rng.randint(MIN_FACTS, MAX_FACTS), rng.choice((1, -1)), rng.choice(tuple(TONES)))


def write_summary(post: Post, rng: random.Random, style: Style | None = None) -> str:
    """A well-formed, faithful summary in `style` (default: any), with its leading space."""
    style = style or draw_style(rng)
    return "".join(sentences(choose_facts(post, style.facts, rng), style))


def choose_facts(post: Post, count: int, rng: random.Random) -> list[Fact]:
    """`count` of the post's facts, in its order."""
    return [post.facts[i] for i in sorted(rng.sample(range(len(post.facts)), count))]


def sentences(facts: list[Fact], style: Style) -> list[str]:
    """The facts, given in the week's order, said in the style's order and tone, each with its leading space."""
    return [f" {clause(fact, style.tone)}." for fact in facts[:: style.order]]


def grade_summary(prompt: str, response: str, finished: bool = True) -> Verdict:
    """Judge `response` to `prompt` exactly. `finished`: the model ended it, rather than a token limit.

    The last post of the prompt counts: examples may stand before it.
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
    """1 where each day is later in the week than the one before, -1 where each is earlier; None else.

    So no fact comes twice.
    """
    steps = {after > before for before, after in itertools.pairwise(DAYS.index(fact[0]) for fact in facts)}
    repeats = len({fact[0] for fact in facts}) < len(facts)
    return None if repeats or len(steps) > 1 else -1 if steps == {False} else 1
