"""Write responses for many (prompt, user) pairs at once, with a KV cache.

Every pair has its own random numbers, from (seed, prompt, user, candidate), so a response does not depend on the batch
in which it was written, and a resumed run writes the same responses as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from typing_extensions import override

from prlhf.config import GenerateConfig
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow, serves
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.generate.sampling import choose
from prlhf.model.chat import Chat
from prlhf.model.checkpoint import Policy
from prlhf.model.personalized import unwrapped
from prlhf.model.readings import pad_rows
from prlhf.model.user_models import user_model_of


@dataclass(frozen=True)
class Written:
    """A response, and how it ended."""

    request: WriteRequest
    text: str
    tokens: int  # without the token that ended it
    finished: bool  # whether the model ended the response
    reward: float | None = None  # if it is a candidate of best-of-N, or its choice
    sampled: tuple[int, ...] = field(default=(), compare=False)  # all tokens that the model chose, up to its end


def write(
    policy: Policy, requests: Sequence[WriteRequest], config: GenerateConfig, base: bool = False
) -> Iterator[list[Written]]:
    """Yield responses to `requests`, as they end.

    The decode loop writes them, or transformers' `generate` for a model that the loop cannot serve. `base`: the base
    model alone, adapter and user tokens off. Requests that do not differ are written once; with greedy decoding these
    are all that begin alike.
    """
    groups: dict[Any, list[WriteRequest]] = {}
    for request in requests:
        user = None if base or policy.model.users.idle else who_acts(policy, request)
        key = (user, tuple(request.ids), request.stop, row_seed(config.seed, request) if config.temperature else 0)
        groups.setdefault(key, []).append(request)
    rows = [DecodeRow(ids, user, seed, tag=same) for (user, ids, _, seed), same in groups.items()]
    decode = by_loop if serves(policy.model) else by_generate
    end = turn_end(policy, config)
    with policy.model.as_base() if base else nullcontext():
        for ended in decode(policy, rows, config, end):
            yield [written(request, row.written, policy.tokenizer, end) for row in ended for request in row.tag]


@dataclass(frozen=True)
class End:
    """What ends a response: any token of `ids`, or the text `words`. The same for a base and a model trained on it."""

    ids: frozenset[int]
    words: str = ""


def turn_end(policy: Policy, config: GenerateConfig) -> End:
    """EOS, the end tokens in the model's own generation settings, and what ends a turn of its chat template."""
    chat = Chat(policy.tokenizer, policy.config.template_options | config.template_options)
    own = getattr(getattr(unwrapped(policy.model.lm), "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    ids = (policy.tokenizer.eos_token_id, chat.end_id, *named)
    return End(frozenset(id_ for id_ in ids if id_ is not None), chat.end_words)


def who_acts(policy: Policy, request: WriteRequest) -> int:
    """The user as whom the request is read; 0 if the user model does not tell users apart."""
    return request.user_index if user_model_of(policy.config).personal else 0


def by_loop(policy: Policy, rows: Sequence[DecodeRow], config: GenerateConfig, end: End) -> Iterator[list[DecodeRow]]:
    """Decode `rows` with the decode loop; yields rows as they end."""

    def ended(row: DecodeRow) -> bool:
        texts = (row.tag[0].stop, end.words)
        return row.written[-1] in end.ids or any(stopped(text, row.written, policy.tokenizer) for text in texts)

    size = min(config.batch_size, len(rows))  # memory is allocated for all slots
    loop = DecodeLoop(policy.model, size, config.max_new_tokens, ended, config.temperature, config.top_p)
    yield from filter(None, loop.run(rows))


def stopped(stop: str, ids: Sequence[int], tokenizer: Any) -> bool:
    """Whether `stop` is in the text of `ids`; False if it is empty.

    This is called after each token, so the last few are tried first: a character has at most four bytes, and so four
    tokens.
    """
    if not stop or stop not in tokenizer.decode(ids[-4 * len(stop) - 4 :], skip_special_tokens=True):
        return False
    return stop in tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def by_generate(
    policy: Policy, rows: Sequence[DecodeRow], config: GenerateConfig, end: End
) -> Iterator[list[DecodeRow]]:
    """Decode `rows` with transformers' `generate`, in batches of similar length, which wait for their longest."""
    model, tokenizer, lm = policy.model, policy.tokenizer, unwrapped(policy.model.lm)
    options = GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=False,  # `Choice` has chosen in the scores
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(end.ids),
    )
    for batch in batches(rows, config.batch_size):
        user_indices = [row.user_index or 0 for row in batch]
        nobody = batch[0].user_index is None
        tokens = 0 if nobody else model.users.tokens
        padded = pad_rows(
            [list(row.ids) for row in batch], [[]] * len(batch), user_indices, tokens, tokenizer.pad_token_id
        )
        padded = padded.to(policy.device)
        model.act_as(None if nobody else padded.user_indices)
        embeds = model.embed(padded) if tokens else lm.get_input_embeddings()(padded.ids)
        choice = LogitsProcessorList([Choice(batch, config)])
        with plain_settings(lm):
            out = lm.generate(
                inputs_embeds=embeds, attention_mask=padded.mask, generation_config=options, logits_processor=choice
            )
        for row, ids in zip(batch, out.tolist(), strict=True):
            row.written[:] = ids
        yield batch


@contextmanager
def plain_settings(lm: Any) -> Iterator[None]:
    """Remove a model's own generation settings while the context lasts.

    `generate` would add them (a repetition penalty, for example) to the settings it is given; responses are samples of
    the policy itself, as in the loop.
    """
    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = own


class Choice(LogitsProcessor):
    """Leaves each row only the token that the loop would choose, so that arg-max takes it."""

    def __init__(self, rows: Sequence[DecodeRow], config: GenerateConfig) -> None:
        self.seeds, self.config, self.step = [row.seed for row in rows], config, 0

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        steps = [self.step] * len(self.seeds)
        tokens = choose(scores, self.seeds, steps, self.config.temperature, self.config.top_p)
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)


def batches(rows: Sequence[DecodeRow], size: int) -> Iterator[list[DecodeRow]]:
    """Yield rows of similar length together, so that little is padded."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def written(request: WriteRequest, ids: list[int], tokenizer: Any, end: End) -> Written:
    """The response in `ids`, up to a token or the text of `end`, or the request's stop string."""
    last = next((at for at, id_ in enumerate(ids) if id_ in end.ids), None)
    sampled = tuple(ids if last is None else ids[: last + 1])
    ids = ids[:last]

    def text(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    stops = [stop for stop in (request.stop, end.words) if stop and stop in text(len(ids))]
    if stops:
        count, stop = min((next(n for n in range(len(ids) + 1) if stop in text(n)), stop) for stop in stops)
        return Written(request, text(count).partition(stop)[0], count, True, sampled=sampled[:count])
    return Written(request, text(len(ids)), len(ids), last is not None, sampled=sampled)
