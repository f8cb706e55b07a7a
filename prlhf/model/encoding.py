"""Text to token ids, within token budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from prlhf.dataset import Comparison, Message, Text
from prlhf.errors import PrlhfError
from prlhf.model.chat import Chat, Turn, one_answer
from prlhf.model.fitting import TooLong
from prlhf.progress import Progress

CHANGES = {  # what is reported about rows that were changed, one line for all of them
    "wrapped": "{count} plain prompts became a user's message, because the model was trained on conversations",
    "system": "the chat template does not take a system message: it stands in front of the first user message",
    "repeats": "{count} comparisons repeat the prompt in both responses: it was removed there",
    "turns moved": "{count} comparisons begin with the same turns in both responses: these were moved to the prompt",
    "apart": "the chat template changes {count} responses (it leaves out thoughts, for example): "
    "they stay as they are in the data",
    "thoughts closed": "the chat template opens a thought that {count} responses do not have: it is closed before them "
    "(a template option such as enable_thinking=false may avoid that)",
    "specials": "{count} responses hold the name of a token that ends texts: it was read as plain characters",
    "empty": "{count} responses are empty: only their end is trained",
}


@dataclass(frozen=True)
class Encoded:
    """One comparison in token ids."""

    text: list[int]  # text about the user, may be empty
    prompt: list[int]
    chosen: list[int]  # ends with the token that ends a turn, or EOS, unless truncated
    rejected: list[int]
    user_index: int


@dataclass(frozen=True)
class Shown:
    """A prompt as the model reads it: with the chat template's text, and in ids."""

    text: str
    ids: list[int]


@dataclass
class Encoder:
    """Tokenizes comparisons within token budgets, and counts what was cut or changed.

    `limit` is the maximum of user tokens + text + prompt + response. Plain prompts over `prompt_limit` lose their
    beginning, but not BOS. Conversations over `prompt_limit`, or too long for the room that is left, lose their oldest
    turns, but never the user's last message. Room is kept for the response: as much as it needs, or a quarter of what
    user tokens and text leave.
    """

    tokenizer: Any
    user_tokens: int
    limit: int
    prompt_limit: int | None = None
    use_text: bool = True
    template_options: dict[str, Any] = field(default_factory=dict)  # for the chat template
    conversational: bool | None = None  # whether its prompts are conversations; None: they may be either
    vocabulary: int | None = None  # rows of the model's embeddings; None: not checked
    cut: dict[str, int] = field(default_factory=lambda: {"prompts": 0, "histories": 0, "responses": 0})
    changes: Counter[str] = field(default_factory=Counter)  # keys of CHANGES, and how often
    _last: tuple[Text, Shown] | None = field(default=None, init=False, repr=False)  # the prompt that was tokenized last

    def comparison(self, row: Comparison) -> Encoded:
        """Encode a data set's comparison, after `one_answer`.

        Raises:
            TooLong: it does not fit.
            PrlhfError: a response is not one answer, or is not text for this model.
        """
        return self.pair(one_answer(row, self.changes))

    def pair(self, row: Comparison) -> Encoded:
        """Encode a comparison as it is. Raises as `comparison` does."""
        text, prompt, (chosen, rejected) = self._fit(row, [row.chosen, row.rejected])
        return Encoded(text, prompt, chosen, rejected, row.user_index)

    def demonstration(self, row: Comparison) -> tuple[list[int], list[int]]:
        """Prompt and chosen response of a comparison, without text about the user. Raises as `comparison` does."""
        row = replace(one_answer(row, self.changes), user_text="")
        _, prompt, (response,) = self._fit(row, [row.chosen])
        return prompt, response

    def text(self, user_text: str) -> list[int]:
        """The ids of a text about the user; empty if the model does not read texts."""
        if not (self.use_text and user_text):
            return []
        return list(self.tokenizer(user_text, add_special_tokens=False).input_ids)

    def prompt(self, prompt: Text, room: int, name: str, text: int = 0) -> list[int]:
        """The ids of a prompt that must fit into `room` tokens, beside `text` tokens about the user.

        `name` is what an error calls the prompt. Raises TooLong.
        """
        prompt = self.asked(prompt, name)
        return self._cut(prompt, self._shown(prompt, name).ids, room, name, text)

    def response(self, prompt: Text, response: Text, room: int, name: str = "a prompt") -> list[int]:
        """The ids of a response to `prompt`, cut off after `room` tokens."""
        ids = self._response(prompt, self._shown(prompt, name), response, name)
        self.cut["responses"] += len(ids) > room
        return ids[:room]

    def asked(self, prompt: Text, name: str) -> Text:
        """A prompt in the format of this encoder: plain text becomes a user's message if it is for conversations."""
        if self.conversational and isinstance(prompt, str):
            self.changes["wrapped"] += 1
            return [{"role": "user", "content": prompt}]
        if self.conversational is False and not isinstance(prompt, str):
            raise PrlhfError(
                f"the prompt '{name}' is a conversation, and the run was trained on plain text",
                "give prompts as plain text, or a run that was trained on conversations",
            )
        return prompt

    def before(self, text: list[int], prompt: list[int]) -> tuple[list[int], list[int]]:
        """Text about the user and prompt as they follow one another, with one BOS in front of both.

        BOS moves only if the tokenizer puts it in front of texts: SmolLM2's begins each turn, and stays where it is.
        """
        begin = self._begin
        if text and prompt[: len(begin)] == begin:
            return begin + text, prompt[len(begin) :]
        return text, prompt

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer's chat template with these options."""
        return Chat(self.tokenizer, self.template_options, self.changes)

    def note_cut(self, progress: Progress) -> None:
        """Report how many rows were cut or changed so far."""
        for what, count in self.cut.items():
            if count:
                progress.note(f"{count} {what} were cut to fit the token budget")
        for what, line in CHANGES.items():
            if self.changes[what]:
                progress.note(line.format(count=self.changes[what]))

    # ---- budgets ----

    def _fit(self, row: Comparison, responses: Sequence[Text]) -> tuple[list[int], list[int], list[list[int]]]:
        """Text, prompt and responses of a row, cut where that is allowed."""
        prompt = self.asked(row.prompt, row.id)
        if prompt is not row.prompt:
            responses = [[{"role": "assistant", "content": r}] if isinstance(r, str) else r for r in responses]
        text, shown = self.text(row.user_text), self._shown(prompt, row.id)
        answers = [self._response(prompt, shown, response, row.id) for response in responses]
        room = self.limit - self.user_tokens - len(text)
        need = min(max(map(len, answers)), max(1, room // 4))
        before = self._cut(prompt, shown.ids, room - need, row.id, len(text))
        room -= len(before)
        self.cut["responses"] += sum(len(answer) > room for answer in answers)
        return *self.before(text, before), [answer[:room] for answer in answers]

    def _cut(self, prompt: Text, ids: list[int], room: int, name: str, text: int) -> list[int]:
        """The ids of a prompt, cut to its budget if that is allowed. Raises TooLong."""
        budget = room if self.prompt_limit is None else min(room, self.prompt_limit)
        if len(ids) <= budget:
            return list(ids)
        if isinstance(prompt, str):
            keep = len(self._begin) if ids[: len(self._begin)] == self._begin else 0
            least = len(ids) if self.prompt_limit is None else keep + 1
            if least <= budget:
                self.cut["prompts"] += 1
                return ids[:keep] + ids[keep - budget :]
            raise self._too_long(f"the prompt of '{name}' has {len(ids):,} tokens", name, least, budget, room, text)
        least = len(ids)
        for kept in shorter_histories(prompt):
            shorter = self._shown(kept, name).ids
            if len(shorter) <= budget:
                self.cut["histories"] += 1
                return list(shorter)
            least = len(shorter)
        what = f"the user's last message in the prompt of '{name}' alone has {least:,} tokens with the chat template's"
        raise self._too_long(what, name, least, budget, room, text)

    def _too_long(self, what: str, name: str, least: int, budget: int, room: int, text: int) -> TooLong:
        """The error for a prompt that cannot be shorter than `least` tokens."""
        if text > least and least <= budget + text:  # it would fit without the text
            return TooLong(
                name,
                f"the text about the user of '{name}' has {text:,} tokens, and {max(room + text - least, 0):,} fit "
                f"beside prompt and response (context {self.limit:,})",
                "shorten the text, or train without texts: `prlhf train --set user_text=false`",
                least - budget,
            )
        why, advice = f"context {self.limit:,}, less user tokens, text and room for the response", "shorten it"
        if budget < room:
            why, advice = "max_prompt_tokens", "shorten it, or raise max_prompt_tokens"
        elif self.prompt_limit is None and what.startswith("the prompt"):
            advice = "shorten it, or set max_prompt_tokens, which cuts plain prompts from their beginning"
        return TooLong(name, f"{what}, and {max(budget, 0):,} fit ({why})", advice, least - budget)

    # ---- ids ----

    def _shown(self, prompt: Text, name: str) -> Shown:
        """The prompt as the model reads it. It is tokenized once for the prompt and its responses."""
        if self._last is None or self._last[0] != prompt:
            text = prompt if isinstance(prompt, str) else self.chat.prompt(prompt, name)
            self._last = (prompt, Shown(text, self._ids(text, plain=isinstance(prompt, str), name=name)))
        return self._last[1]

    def _ids(self, text: str, plain: bool, name: str) -> list[int]:
        """The ids of a text from its beginning, with at most one BOS and without an EOS that the tokenizer adds.

        A template writes its own BOS; plain text gets what the tokenizer puts in front of texts.
        """
        try:
            ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        except (TypeError, UnicodeError) as error:  # tokenizers do not take half a surrogate pair
            raise PrlhfError(f"the text of '{name}' is not valid Unicode", "repair or remove the row") from error
        if plain and ids[: len(self._begin)] != self._begin:
            ids = self._begin + ids
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            del ids[0]
        self._check(ids, name)
        return ids

    @cached_property
    def _begin(self) -> list[int]:
        """What the tokenizer puts in front of a text: BOS, or nothing."""
        whole, alone = (list(self.tokenizer("a", add_special_tokens=s).input_ids) for s in (True, False))
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(alone)] == alone), [])

    def _response(self, prompt: Text, shown: Shown, response: Text, name: str) -> list[int]:
        """The ids that follow those of the prompt, up to the token that ends the turn.

        The response is tokenized together with the prompt, as one text, if that keeps the prompt's own ids; separately
        if a token would span the boundary.
        """
        eos = self.tokenizer.eos_token_id
        if isinstance(prompt, str) and isinstance(response, str):
            turn = Turn("", without_end(response, self.tokenizer.eos_token), "")
        elif not isinstance(prompt, str) and not isinstance(response, str):
            words = without_end("".join(message["content"] for message in response), self.tokenizer.eos_token)
            turn = self.chat.turn(prompt, shown.text, words, name)
        else:
            raise PrlhfError("prompt and response have different formats", "make both plain or both conversational")
        ids = self._after(shown, turn.text, isinstance(prompt, str), name)
        if isinstance(prompt, str) or self.chat.end_id is None:
            ids = [*ids, eos]
        if not {eos, self.chat.end_id}.isdisjoint(ids[:-1]):
            self.changes["specials"] += 1
            ids = self._spelled_out(turn) + ids[-1:]
        self.changes["empty"] += not turn.content.strip()
        self._check(ids, name)
        return ids

    def _after(self, shown: Shown, text: str, plain: bool, name: str) -> list[int]:
        whole = self._ids(shown.text + text, plain, name)
        if whole[: len(shown.ids)] == shown.ids:
            return whole[len(shown.ids) :]
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _spelled_out(self, turn: Turn) -> list[int]:
        """A turn without its end, in which names of special tokens in the response are plain characters."""
        lead = list(self.tokenizer(turn.lead, add_special_tokens=False).input_ids) if turn.lead else []
        ids = self.tokenizer(turn.content, add_special_tokens=False, split_special_tokens=True).input_ids
        after = self.tokenizer(turn.end, add_special_tokens=False).input_ids if turn.end else []
        return [*lead, *ids, *(after[:-1] if self.chat.end_id in after[-1:] else after)]

    def _check(self, ids: Sequence[int], name: str) -> None:
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise PrlhfError(
                f"token '{token}' in '{name}' has the id {max(ids):,}, and the model has embeddings for "
                f"{self.vocabulary:,} tokens (its tokenizer knows {len(self.tokenizer):,})",
                "resize the model's embeddings and save it, or use the tokenizer that it came with",
            )


def without_end(response: str, eos: str) -> str:
    """A response without end-of-text tokens that its data set has after it."""
    while response.endswith(eos):
        response = response.removesuffix(eos)
    return response


def shorter_histories(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the whole conversation, then with more and more of its oldest turns removed, down to the last user message.

    A system message at the head stays. What follows it starts with the user, as most chat templates require.
    """
    yield messages
    head = [message for message in messages[:1] if message["role"] == "system"]
    for start, message in enumerate(messages):
        if start > len(head) and message["role"] == "user":
            yield [*head, *messages[start:]]
