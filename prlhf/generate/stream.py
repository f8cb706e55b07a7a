"""One response as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from prlhf.config import GenerateConfig
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow, serves
from prlhf.generate.decoding import stopped, turn_end, who_acts, write, written
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.model.checkpoint import Policy


def stream(policy: Policy, request: WriteRequest, config: GenerateConfig, base: bool = False) -> Iterator[str]:
    """Yield the response to `request` in pieces; together they are the text that `write` yields.

    A model that the decode loop cannot serve yields it in one piece. The caller may stop at any piece. `base`: the base
    model alone.
    """
    if not serves(policy.model):
        yield from (done.text for ended in write(policy, [request], config, base) for done in ended)
        return
    with policy.model.as_base() if base else nullcontext():
        yield from _by_loop(policy, request, config, base)


def _by_loop(policy: Policy, request: WriteRequest, config: GenerateConfig, base: bool) -> Iterator[str]:
    tokenizer, end = policy.tokenizer, turn_end(policy, config)
    stops = [text for text in (request.stop, end.words) if text]

    def ended(row: DecodeRow) -> bool:
        return row.written[-1] in end.ids or any(stopped(text, row.written, tokenizer) for text in stops)

    user = None if base or policy.model.users.idle else who_acts(policy, request)
    row = DecodeRow(request.ids, user, row_seed(config.seed, request))
    loop = DecodeLoop(policy.model, 1, config.max_new_tokens, ended, config.temperature, config.top_p)
    shown = ""
    for finished in loop.run([row]):
        text = written(request, row.written, tokenizer, end).text
        sure = text if finished else settled(text, stops)
        if len(sure) > len(shown) and sure.startswith(shown):
            yield sure[len(shown) :]
            shown = sure


def settled(text: str, stops: list[str]) -> str:
    """The part of `text` that more tokens cannot change: no half character at its end, and no half of a stop text."""
    text = text.rstrip("\ufffd")
    halves = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return text[: len(text) - max(halves, default=0)]
