"""Text to token ids, and token ids to padded tensors.

Row layout, with the boundary between prompt and response at the same column P for all rows:

    | padding | T_u user slots | text about the user | prompt || response + EOS | padding |
                                                             ^ column P

so the logits that score responses are the last R + 1 columns and no others need to be computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.records import Comparison, Message, Text


@dataclass(frozen=True)
class Encoded:
    """One comparison in token ids."""

    text: list[int]  # text about the user, may be empty
    prompt: list[int]
    chosen: list[int]  # ends with EOS unless truncated
    rejected: list[int]
    user: int


@dataclass(frozen=True)
class Rows:
    """Padded rows: `ids`, `mask`, `slots` are [N, L], `users` is [N]; responses start at column `start`.

    `slots` marks the T_u columns of each row that the user model fills (none for the reference).
    """

    ids: Tensor
    mask: Tensor
    slots: Tensor
    users: Tensor
    start: int

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`."""
        return Rows(self.ids.to(device), self.mask.to(device), self.slots.to(device), self.users.to(device), self.start)


@dataclass
class Encoder:
    """Tokenises comparisons under token budgets and counts what it had to cut.

    `limit` bounds user tokens + text + prompt + response. Plain prompts over `prompt_limit` lose their beginning.
    Conversations over `prompt_limit` or the room there is lose their oldest turns, never the user's last message.
    """

    tokenizer: Any
    user_tokens: int
    limit: int
    prompt_limit: int | None = None
    use_text: bool = True
    cut: dict[str, int] = field(default_factory=lambda: {"prompts": 0, "histories": 0, "responses": 0})
    _last: tuple[Text, list[int]] | None = field(default=None, init=False, repr=False)  # the prompt in hand, its ids

    def comparison(self, row: Comparison) -> Encoded:
        """A comparison as tokens, its prompt cut from the left to fit. Raises PrlhfError if a response does not."""
        text = self.text(row.user_text)
        prompt = self.prompt(row.prompt, room=self.limit - self.user_tokens - len(text) - 1, name=row.id)
        room = self.limit - self.user_tokens - len(text) - len(prompt)
        chosen, rejected = (self.response(row.prompt, answer, room) for answer in (row.chosen, row.rejected))
        return Encoded(text, prompt, chosen, rejected, row.user_index)

    def note_cut(self, progress: Progress) -> None:
        """Say what had to be cut so far, and how often."""
        for what, count in self.cut.items():
            if count:
                progress.note(f"{count} {what} were cut to fit the token budget")

    def text(self, user_text: str) -> list[int]:
        """The ids of a user's text; empty if the model does not read texts."""
        if not (self.use_text and user_text):
            return []
        return list(self.tokenizer(user_text, add_special_tokens=False).input_ids)

    def prompt(self, prompt: Text, room: int, name: str) -> list[int]:
        """Ids of a prompt that must fit into `room` tokens; `name` is what an error calls it."""
        return self._plain(prompt, room, name) if isinstance(prompt, str) else self._conversation(prompt, room, name)

    def _plain(self, prompt: str, room: int, name: str) -> list[int]:
        ids = self._prompt_ids(prompt)
        if self.prompt_limit is not None and len(ids) > self.prompt_limit:
            self.cut["prompts"] += 1
            ids = ids[-self.prompt_limit :]
        if len(ids) > room:
            raise PrlhfError(
                f"the prompt of '{name}' has {len(ids)} tokens, and {max(room, 0)} fit "
                f"(context {self.limit}, less user tokens and text)",
                "shorten it, or set max_prompt_tokens in training, a smaller max_new_tokens in generating",
            )
        return ids

    def _conversation(self, prompt: list[Message], room: int, name: str) -> list[int]:
        budget = room if self.prompt_limit is None else min(room, self.prompt_limit)
        for kept in shorter_histories(prompt):
            ids = self._prompt_ids(kept)
            if len(ids) <= budget:
                self.cut["histories"] += len(kept) < len(prompt)
                return ids
        why, hint = f"context {self.limit}, less user tokens and text", "set a smaller max_new_tokens in generating"
        if budget < room:
            why, hint = "max_prompt_tokens", "raise max_prompt_tokens"
        raise PrlhfError(
            f"the user's last message in the prompt of '{name}' alone has {len(ids)} tokens with the chat template's, "
            f"and {max(budget, 0)} fit ({why})",
            f"shorten it, or {hint}",
        )

    def _prompt_ids(self, prompt: Text) -> list[int]:
        """A comparison asks for its prompt by itself and before each response; it is tokenised once."""
        if self._last is None or self._last[0] != prompt:
            self._last = (prompt, self._read_prompt(prompt))
        return list(self._last[1])

    def _read_prompt(self, prompt: Text) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt).input_ids)
        return self._template(prompt, add_generation_prompt=True)

    def response(self, prompt: Text, response: Text, room: int) -> list[int]:
        """Ids that follow the prompt's.

        Tokenised together with the prompt, as one text, where that keeps the prompt's own ids; apart from it where a
        token would span the boundary.
        """
        before = self._prompt_ids(prompt)
        if isinstance(prompt, str) and isinstance(response, str):
            whole = list(self.tokenizer(prompt + response).input_ids)
            alone = response
        elif not isinstance(prompt, str) and not isinstance(response, str):
            whole = self._template([*prompt, *response])
            alone = "".join(message["content"] for message in response)
        else:
            raise PrlhfError("prompt and response are of two formats", "make both plain or both conversational")
        if whole[: len(before)] == before:
            ids = whole[len(before) :]
        else:
            ids = list(self.tokenizer(alone, add_special_tokens=False).input_ids)
        eos = self.tokenizer.eos_token_id
        ids = [*(ids[: ids.index(eos)] if eos in ids else ids), eos]
        if len(ids) > room:
            self.cut["responses"] += 1
        return ids[:room]

    def _template(self, messages: list[Message], **options: Any) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise PrlhfError(
                "the data set is conversational and the base model has no chat template",
                "use an instruct model or plain text",
            )
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
        return list(ids)


def shorter_histories(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation whole, then with ever fewer of its oldest turns, down to the user's last message.

    A system message at the head stays. What follows it starts with the user, as most chat templates demand.
    """
    yield messages
    head = [message for message in messages[:1] if message["role"] == "system"]
    for start, message in enumerate(messages):
        if start > len(head) and message["role"] == "user":
            yield [*head, *messages[start:]]


def pad_rows(
    befores: Sequence[list[int]], responses: Sequence[list[int]], users: Sequence[int], user_tokens: int, pad: int
) -> Rows:
    """Lay out rows as the module's heading shows. `befores`: text + prompt ids of each row."""
    start = user_tokens + max(len(before) for before in befores)
    length = start + max((len(response) for response in responses), default=0)
    ids = torch.full((len(befores), length), pad)
    mask = torch.zeros(len(befores), length, dtype=torch.long)
    slots = torch.zeros(len(befores), length, dtype=torch.bool)
    for row, (before, response) in enumerate(zip(befores, responses, strict=True)):
        first = start - len(before) - user_tokens
        slots[row, first : first + user_tokens] = True
        ids[row, start - len(before) : start] = torch.tensor(before, dtype=torch.long)
        ids[row, start : start + len(response)] = torch.tensor(response, dtype=torch.long)
        mask[row, first : start + len(response)] = 1
    return Rows(ids, mask, slots, torch.tensor(list(users), dtype=torch.long), start)
