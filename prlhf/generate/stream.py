"""One response as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from prlhf.config import GenerateConfig
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow, serves
from prlhf.generate.decoding import turn_end, who_acts, write
from prlhf.generate.prefixes import KeptBeginnings
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.generate.text_stream import TextStream
from prlhf.model.checkpoint import Policy


def stream(
    policy: Policy,
    request: WriteRequest,
    config: GenerateConfig,
    base: bool = False,
    kept: KeptBeginnings | None = None,
) -> Iterator[str]:
    """Yield the response to `request` in pieces; together they are the text that `write` yields.

    A model that the decode loop cannot serve yields it in one piece. The caller may stop at any piece. `base`: the base
    model alone. `kept`: what was computed for earlier ones, of the same `policy` and `base`.
    """
    if not serves(policy.model):
        yield from (done.text for ended in write(policy, [request], config, base) for done in ended)
        return
    with policy.model.as_base() if base else nullcontext():
        yield from _by_loop(policy, request, config, base, kept)


def _by_loop(
    policy: Policy, request: WriteRequest, config: GenerateConfig, base: bool, kept: KeptBeginnings | None
) -> Iterator[str]:
    text = TextStream(policy.tokenizer, turn_end(policy, config), [request.stop] if request.stop else [])
    pieces: list[str] = []

    def ended(row: DecodeRow) -> bool:
        pieces.append(text.push(row.written[-1]))
        return text.finished

    user = None if base or policy.model.users.idle else who_acts(policy, request)
    row = DecodeRow(request.ids, user, row_seed(config.seed, request))
    loop = DecodeLoop(policy.model, 1, config.max_new_tokens, ended, config.temperature, config.top_p, kept)
    for finished in loop.run([row]):
        if finished:
            pieces.append(text.rest())
        if piece := "".join(pieces):
            yield piece
        pieces.clear()
