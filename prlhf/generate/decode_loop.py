"""The decode loop: rows join as others end, so that nobody waits for the longest.

A row's beginning (the user's vectors, the text about them, the prompt) is read in one forward pass without logits, all
but its last position; the loop then reads one position of every row at a time, which gives the row's next token. What
rows begin with alike (candidates of best-of-N, users whom the model does not tell apart, a system prompt) is read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prlhf.generate.kv_cache import SlotCache, decode_masks, known_kinds
from prlhf.generate.prefixes import LEAST, Beginning, Joining, KeptBeginnings, joinings
from prlhf.generate.sampling import Sampling, TokenScore, choose_each, token_score
from prlhf.model.base import window_of
from prlhf.model.engine import REFUSALS
from prlhf.model.personalized import PersonalizedLM, unwrapped

T = TypeVar("T")
SIMILAR = 0.9  # of the longest length in a batch: shorter beginnings are read separately
LONGEST = 24  # tokens in the probe; a wider window is taken on trust
Ended = Callable[["DecodeRow"], bool]


@dataclass(eq=False)
class DecodeRow:
    """One response being written, after `ids` and as the user of `user_index` (None: no user acts)."""

    ids: Sequence[int]
    user_index: int | None
    seed: int
    tag: Any = None  # the caller's
    room: int | None = None  # the most tokens that it may get; None: as many as the loop allows
    sampling: Sampling | None = None  # None: as the loop
    top: int | None = None  # how many alternatives `scores` has for each token; None: there are no scores
    who: Any = None  # what tells its user from all others, later ones too; None: `user_index` does
    reused: int = 0  # how many of `ids` were read before
    written: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)


class DecodeLoop:
    """Writes rows with `model`, `size` of them at a time."""

    def __init__(
        self,
        model: PersonalizedLM,
        size: int,
        room: int,
        ended: Ended,
        temperature: float = 0.0,
        top_p: float = 1.0,
        kept: KeptBeginnings | None = None,
        least: int = LEAST,
    ) -> None:
        """`room`: the most tokens that a row may get; `ended`: asked after each token whether it was the row's last.

        `kept`: where rows that leave put what was computed for them, and others find it; `least`: the fewest positions
        that are not computed again.
        """
        self.kept, self.least = kept or KeptBeginnings(), least
        self.model, self.lm, self.size, self.room, self.ended = model, unwrapped(model.lm), size, room, ended
        self.config = self.lm.config.get_text_config()
        self.sampling = Sampling(temperature, top_p)
        self.cache = SlotCache(size)
        self.active: list[DecodeRow] = []  # in the order of their slots
        self.next = torch.empty(0)  # the embeddings [N, d] that the active rows continue with

    @torch.no_grad()
    def run(self, rows: Sequence[DecodeRow]) -> Iterator[list[DecodeRow]]:
        """Yield the rows as they end.

        The longest start first: then rows that begin alike stand together, the cache never grows, and the last rows are
        short.
        """
        queue = deque(sorted(rows, key=lambda row: (-self._length(row), row.user_index or 0, row.ids)))
        patience = max(1, self.size // 8)  # joining costs a forward pass: not for each row that leaves
        while queue or self.active:
            free = self.size - len(self.active)
            if queue and (free >= min(patience, len(queue)) or not self.active):
                self.join([queue.popleft() for _ in range(min(free, len(queue)))])
            yield self.step()

    # ---- rows join ----

    @torch.no_grad()
    def join(self, rows: Sequence[DecodeRow]) -> None:
        """Add rows to the active ones, after reading their beginnings."""
        self.cache.columns = max(self.cache.columns, *(self._length(row) + self._room(row) - 1 for row in rows))
        first = len(self.active)
        fresh = [(slot, self._begun(row)) for slot, row in enumerate(rows, first)]
        there = [(slot, self._begun(row)) for slot, row in enumerate(self.active)]
        for turn in joinings(fresh, there, self.kept, self.least):
            ordered = sorted(turn, key=lambda one: (one.past, -len(one.beginning)))
            for past, some in groupby(ordered, lambda one: one.past):
                for group in alike(list(some), lambda one: len(one.beginning) - one.past):
                    self._read(group, [rows[one.slot - first] for one in group], past)
        last = [self._embed([row])[0, -1] for row in rows]
        self.next = torch.stack([*self.next, *last])
        self.active += rows

    def _begun(self, row: DecodeRow) -> Beginning:
        """All positions of `row` but the last, which are or will be in its slot."""
        who = row.user_index if row.who is None else row.who
        return Beginning(who, (*row.ids, *row.written)[:-1], self._length(row) - len(row.ids))

    def _read(self, group: Sequence[Joining], rows: Sequence[DecodeRow], past: int) -> None:
        """Read the beginnings of `rows`, all but the last position, into their slots, from position `past` on.

        No row looks at its padding, which comes after it, and the loop overwrites it.
        """
        slots = self._tensor([one.slot for one in group])
        if past:
            self._fetch(group, past)
        for one, row in zip(group, rows, strict=True):
            row.reused = max(0, past - one.beginning.front)
        embeds = self._embed(rows)[:, past:-1]
        if embeds.shape[1]:
            self._act_as(rows)
            self.cache.begin(slots, past)
            positions = torch.arange(past, past + embeds.shape[1], device=embeds.device).expand(len(group), -1)
            self.lm.base_model(inputs_embeds=embeds, position_ids=positions, past_key_values=self.cache, use_cache=True)

    def _fetch(self, group: Sequence[Joining], past: int) -> None:
        """Bring what was computed before of `past` positions into the slots."""
        copies = [(one.source, one.slot) for one in group if isinstance(one.source, int)]
        if copies:
            source, target = zip(*copies, strict=True)
            self.cache.copy(self._tensor(source), self._tensor(target), past)
        for one in group:
            if isinstance(one.source, Beginning):
                self.cache.put(one.slot, self.kept.use(one.source), past)

    def _embed(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Embeddings [N, L, d] of whole beginnings, padded on the right."""
        words = self.lm.get_input_embeddings()
        ids = torch.nn.utils.rnn.pad_sequence([self._tensor(row.ids) for row in rows], batch_first=True)
        embeds: Tensor = words(ids)
        if rows[0].user_index is not None and self.model.users.tokens:
            vectors = self.model.users(self._tensor([row.user_index for row in rows]))
            embeds = torch.cat([vectors.to(embeds.dtype), embeds], 1)
        return embeds

    def _act_as(self, rows: Sequence[DecodeRow]) -> None:
        """Set the gates of `rows`, if there are any, which the next forward pass reads."""
        if self.model.gates:
            nobody = rows[0].user_index is None
            self.model.act_as(None if nobody else self._tensor([row.user_index for row in rows]))

    # ---- one token each ----

    @torch.no_grad()
    def step(self) -> list[DecodeRow]:
        """Give every active row one more token; returns the rows that ended, which leave."""
        seeds, steps = [row.seed for row in self.active], [len(row.written) for row in self.active]
        logits = self.logits()
        tokens = choose_each(logits, seeds, steps, [row.sampling or self.sampling for row in self.active])
        for slot, row in enumerate(self.active):
            if row.top is not None:
                row.scores.append(token_score(logits[slot], tokens[slot], row.top))
        self.advance(tokens)
        ended = [self.ended(row) or len(row.written) == self._room(row) for row in self.active]
        return self._leave([slot for slot, over in enumerate(ended) if over]) if any(ended) else []

    def drop(self, rows: Sequence[DecodeRow]) -> None:
        """Let active rows leave before their end."""
        if leaving := [slot for slot, row in enumerate(self.active) if row in rows]:
            self._leave(leaving)

    def logits(self) -> Tensor:
        """The logits [N, V] of the next token of every active row."""
        lengths = [self._length(row) + len(row.written) - 1 for row in self.active]
        columns = self._tensor(lengths)
        self.cache.go_on(columns, max(lengths))
        self._act_as(self.active)
        return self.lm(  # type: ignore[no-any-return]
            inputs_embeds=self.next[:, None],
            attention_mask=decode_masks(self.config, columns, max(lengths) + 1, self.next.dtype),
            position_ids=columns[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def advance(self, tokens: Tensor) -> None:
        """Append its token of `tokens` [N] to every active row."""
        self.next = self.lm.get_input_embeddings()(tokens)
        for row, token in zip(self.active, tokens.tolist(), strict=True):
            row.written.append(token)

    def _leave(self, leaving: Sequence[int]) -> list[DecodeRow]:
        """Remove and return the rows in these slots; the last of the rows that stay move into the free slots."""
        gone = [self.active[slot] for slot in leaving]
        if self.kept.room:
            self._keep(leaving)
        staying = [slot for slot in range(len(self.active)) if slot not in set(leaving)]
        holes = [slot for slot in leaving if slot < len(staying)]
        movers = staying[len(staying) - len(holes) :]
        order = list(range(len(staying)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes:
            self.cache.copy(self._tensor(movers), self._tensor(holes), self.cache.end)
        self.active = [self.active[slot] for slot in order]
        self.next = self.next[self._tensor(order)]
        return gone

    def _keep(self, leaving: Sequence[int]) -> None:
        for slot in leaving:
            begun = self._begun(self.active[slot])
            if len(begun) >= self.least:
                self.kept.keep(begun, partial(self.cache.states, slot, len(begun)))

    def _room(self, row: DecodeRow) -> int:
        return self.room if row.room is None else min(row.room, self.room)

    def _length(self, row: DecodeRow) -> int:
        return len(row.ids) + (0 if row.user_index is None else self.model.users.tokens)

    def _tensor(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.lm.device)


def alike(items: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups of neighbors among `items` (the longest first) of similar length, so that little is padded."""
    group: list[T] = []
    for item in items:
        if group and length(item) < SIMILAR * length(group[0]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


# ---- whether the loop can serve a model ----

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def serves(model: PersonalizedLM) -> bool:
    """Whether the loop can decode this model: a probe finds out once per language model, since no config tells.

    Its next-token logits must be those of whole forwards without a cache, on rows of unequal lengths, at their first
    and second token; the last row goes on from what was computed for the first.
    """
    lm = unwrapped(model.lm)
    if lm not in _known:
        try:
            _known[lm] = known_kinds(lm.config.get_text_config()) and _agree(model, lm)
        except REFUSALS:
            _known[lm] = False  # it does not take such a cache, or such masks
    return _known[lm]


def _agree(model: PersonalizedLM, lm: Any) -> bool:
    model.act_as(None)
    words = lm.get_input_embeddings()
    length = min(LONGEST, 2 + (window_of(lm.config.get_text_config()) or 10))
    ids = [[(7 * i + 3 * n) % words.num_embeddings for i in range(n)] for n in (length, 3)]
    rows = [DecodeRow(one, None, seed=0) for one in (*ids, ids[0] + ids[1])]
    loop = DecodeLoop(model, size=3, room=2, ended=lambda _: False, least=1)
    loop.join(rows)
    for _ in range(2):
        found = loop.logits().float()
        whole = torch.stack([_last_logits(lm, [*row.ids, *row.written]) for row in rows]).float()
        if not torch.allclose(found, whole, rtol=0, atol=(0.1 if lm.dtype != torch.float32 else 1e-2) * _spread(whole)):
            return False
        loop.advance(found.argmax(1))
    return True


def _last_logits(lm: Any, ids: list[int]) -> Tensor:
    embeds = lm.get_input_embeddings()(torch.tensor([ids], device=lm.device))
    return lm(inputs_embeds=embeds, use_cache=False).logits[0, -1]  # type: ignore[no-any-return]


def _spread(logits: Tensor) -> float:
    return float(logits.std())
