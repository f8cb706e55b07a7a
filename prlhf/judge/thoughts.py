"""Where the answer of a reasoning model begins.

Servers without a reasoning parser hand over the thoughts within the text, between marks that every family of models
spells in its own way. Thoughts weigh one verdict against the other: nothing in them is a verdict.
"""

from __future__ import annotations

import re

NAMES = r"(?:seed:|mm:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad)"
LEFT, RIGHT = r"(?:<\|?|\[|◁|⟨)", r"(?:\|?>|\]|▷|⟩)"
OPENING = re.compile(
    rf"{LEFT}(?:begin_of_|start_of_|begin_|start_)?{NAMES}(?:\s[^<>]{{0,60}})?{RIGHT}|<\|?channel\|?>\s*thought|<unused94>",
    re.IGNORECASE,
)
CLOSING = re.compile(rf"{LEFT}(?:/|end_of_|end_){NAMES}{RIGHT}|<channel\|>|<unused95>", re.IGNORECASE)
CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|).)*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)", re.DOTALL
)
SPELT_OUT = (  # the same where a server drops the special tokens, or the model was taught plain words
    re.compile(r"\A\s*(?:assistant\s*)?analysis.*assistant\s*final(.*)\Z", re.DOTALL),
    re.compile(r"\A\s*Here is my thought process:.*Here is my response:(.*)\Z", re.DOTALL),
)
WRAPPED = re.compile(
    r"\A\s*<\|?(?:begin_of_)?(answer|final|final_answer|response|output|solution)\|?>(.*?)"
    r"(?:<\|?(?:/|end_of_)\1\|?>)?\Z",
    re.DOTALL | re.IGNORECASE,
)
END = re.compile(r"(?:<\|(?:im_end|eot_id|end|return|endoftext|end_of_text)\|>|</s>|<end_of_turn>)\Z")
MOST = 20  # marks that are looked at: a text has one or two


def answer_in(text: str) -> str | None:
    """What follows the thoughts in `text`; None where they do not end, as when the answer was cut off."""
    if "<|channel|>" in text:
        finals = [said for channel, said in CHANNEL.findall(text) if channel == "final"]
        return _bare(finals[-1]) if finals else None
    for spelling in SPELT_OUT:
        if found := spelling.match(text):
            return _bare(found[1])
    closed = list(CLOSING.finditer(text))
    rest = text[closed[-1].end() :] if closed else text
    return None if OPENING.search(rest) else _bare(rest)


def tails(text: str) -> list[str]:
    """`text`, and what follows each mark that closes thoughts: one of them is the answer if it is JSON as a whole."""
    starts = [found.end() for found in CLOSING.finditer(text)]
    return [_bare(text), *(_bare(text[start:]) for start in starts[:MOST])]


def _bare(text: str) -> str:
    """Without the marks of the text's end, and without a pair of marks around the whole answer."""
    text = text.strip()  # no expression looks at runs of blanks: an answer may be thousands of them
    while found := END.search(text):
        text = text[: found.start()].rstrip()
    wrapped = WRAPPED.match(text)
    return (wrapped[2] if wrapped else text).strip()
