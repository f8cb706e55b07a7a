"""The made-up forum behind the `demo` data set: posts, summaries, and the checker that judges them.

A *fact* is (day, subject, verb, object), said as `on monday my sister sold boats`. A post states four to six facts,
each on another day of one week; a summary states one to four of them, in the post's order and without its filler.
Because the grammar is known, whether a response is well-formed and true to its post is decided exactly,
without a model. Nothing here knows about tensors, users or preferences.
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
# What a reader may ask for, in a line before the post: how many facts to state. The base learns to heed it, as an
# instruction-tuned model would; without a wish, one to four facts are equally likely.
WISHES = {
    1: ("keep it very short.", "one thing only.", "as short as can be."),
    2: ("keep it short.", "two things, please.", "not too long."),
    3: ("say a bit more.", "three things, please.", "rather long."),
    4: ("tell me everything.", "four things, please.", "as long as can be."),
}

Fact = tuple[str, str, str, str]

_CLAUSE = re.compile(r"on (\w+) my (\w+) (\w+) (\w+)")
_SUMMARY = re.compile(rf" ?on \w+ my \w+ \w+ \w+\.(?: on \w+ my \w+ \w+ \w+\.){{0,{MAX_FACTS - 1}}}")


@dataclass(frozen=True)
class Post:
    """A forum post as a prompt (`TL;DR` layout of the paper's section 5.1) and the facts it states, in order."""

    prompt: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one response."""

    well_formed: bool  # one to four facts in the week's order, nothing else, ended by the model itself
    faithful: bool  # well-formed, and every fact stands in the post
    facts: int  # facts stated, 0 where the response is not well-formed


def clause(fact: Fact) -> str:
    day, subject, verb, obj = fact
    return f"on {day} my {subject} {verb} {obj}"


def write_post(rng: random.Random) -> Post:
    """One post of four to six facts; no day, subject, verb or object comes twice."""
    count = rng.randint(4, 6)
    days = [DAYS[i] for i in sorted(rng.sample(range(len(DAYS)), count))]
    words = (rng.sample(words, count) for words in (SUBJECTS, VERBS, OBJECTS))
    facts = tuple(zip(days, *words, strict=True))
    sentences = [f"{clause(fact)}{rng.choice(TAILS)}." for fact in facts]
    sentences.insert(rng.randint(0, count), rng.choice(FILLERS))
    prompt = f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\nTITLE: {rng.choice(TITLES)}\nPOST: {' '.join(sentences)}\nTL;DR:"
    return Post(prompt, facts)


def write_wish(count: int, rng: random.Random) -> str:
    """A line asking for `count` facts, to stand before a post's prompt."""
    return f"{rng.choice(WISHES[count])}\n"


def write_summary(post: Post, rng: random.Random, count: int | None = None) -> str:
    """A well-formed, faithful summary of `count` facts (default: uniform on 1..4), with its leading space."""
    count = rng.randint(MIN_FACTS, MAX_FACTS) if count is None else count
    chosen = sorted(rng.sample(range(len(post.facts)), count))
    return "".join(f" {clause(post.facts[i])}." for i in chosen)


def check(prompt: str, response: str, finished: bool = True) -> Verdict:
    """Judge `response` to `prompt` exactly. `finished`: the model ended it, rather than a token limit."""
    facts: list[Fact] = _CLAUSE.findall(response)
    known = all(d in DAYS and s in SUBJECTS and v in VERBS and o in OBJECTS for d, s, v, o in facts)
    well_formed = bool(finished and _SUMMARY.fullmatch(response.rstrip("\n")) and known and _in_order(facts))
    stated = set(_CLAUSE.findall(prompt))
    return Verdict(well_formed, well_formed and set(facts) <= stated, len(facts) if well_formed else 0)


def _in_order(facts: list[Fact]) -> bool:
    """Each fact's day later in the week than the one before; so no fact comes twice."""
    days = [DAYS.index(fact[0]) for fact in facts]
    return all(before < after for before, after in itertools.pairwise(days))
