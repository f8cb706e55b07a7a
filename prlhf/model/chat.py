"""Conversations as text: a tokenizer's chat template, what ends a turn, and responses of several turns.

The template decides how a prompt and a finished turn are written; what it refuses or leaves out is never lost silently.
A system message that the template does not take (Gemma's, for example) is put in front of the first user message; other
refusals are errors with the row's name and the template's own words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from prlhf.dataset import Comparison, Message, Text
from prlhf.errors import PrlhfError, one_line

MARK = "answer-7f3a"  # takes the place of a response to find out what the template writes after it
TAG = re.compile(r"<[^<>\s]+>|\[/?\w+\]")
THOUGHT = re.compile(
    r"(?P<tag><(?P<angle>[\w:]*(?:think|thought|reason)\w*)>"
    r"|\[(?P<square>\w*(?:think|thought|reason)\w*)\]"
    r"|<\|START_(?P<start>\w*(?:think|thought|reason)\w*)\|>"
    r"|<\|begin_of_(?P<begin>\w*(?:think|thought|reason)\w*)\|>)\s*$",
    re.IGNORECASE,
)


class Refused(Exception):
    """A template does not write a conversation; the message is its own."""


@dataclass(frozen=True)
class Turn:
    """What follows the text of a prompt: `lead`, the words of the response, and what ends the turn."""

    lead: str
    content: str
    end: str

    @property
    def text(self) -> str:
        """All of it."""
        return self.lead + self.content + self.end


class Chat:
    """The chat template of `tokenizer`, rendered with `options` (such as `{"enable_thinking": False}`)."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any], changes: Counter[str] | None = None) -> None:
        """`changes` counts what is done to conversations that the template does not take as they are."""
        self._tokenizer, self._options = tokenizer, dict(options)
        self.changes = Counter[str]() if changes is None else changes

    # ---- conversations to text ----

    def prompt(self, messages: Sequence[Message], name: str) -> str:
        """The text that a model continues: up to where an answer begins, or to the end of an answer that was begun.

        `name` is what an error calls the prompt.

        Raises:
            PrlhfError: the template refuses the conversation.
        """
        messages = without_empty_system(messages)
        if not is_begun(messages):
            return self._render(messages, name, add_generation_prompt=True)
        try:
            return self._written(messages, continue_final_message=True)
        except Refused:  # the template leaves out a part of the begun answer, or refuses the conversation
            before = self._render(messages[:-1], name, add_generation_prompt=True)
            lead, content = within(before, messages[-1]["content"])
            return before + lead + content

    def turn(self, messages: Sequence[Message], shown: str, answer: str, name: str) -> Turn:
        """What follows `shown`, the text of the prompt `messages`, where `answer` is the response.

        It is as the template writes it, if that begins with `shown` and nothing of the answer is missing. Otherwise the
        answer stays as it is; a thought that `shown` opened is not opened again, and is closed before the answer.
        """
        messages = without_empty_system(messages)
        begun = messages[-1]["content"] if is_begun(messages) else ""
        before = messages[:-1] if is_begun(messages) else messages
        whole = self._render([*before, {"role": "assistant", "content": begun + answer}], name)
        lead, content = within(shown, answer)
        if whole.startswith(shown) and whole.endswith(self._after):
            body = whole[len(shown) : len(whole) - len(self._after)]
            at = len(body.rstrip()) - len(content.strip())
            if body.rstrip().endswith(content.strip()) and lead.strip() in body[:at]:
                return Turn(body[:at], body[at:], self.end)
        self.changes["thoughts closed" if lead else "apart"] += 1
        return Turn(lead, content, self.end)

    def _render(self, messages: Sequence[Message], name: str, **how: Any) -> str:
        """As the template writes it; a system message that it does not take goes to the first user message."""
        try:
            return self._written(messages, **how)
        except Refused as refused:
            folded = system_to_user(messages)
            error = refused
        if folded is not None:
            try:
                text = self._written(folded, **how)
            except Refused as refused:
                error = refused
            else:
                self.changes["system"] += 1
                return text
        raise PrlhfError(
            f"the chat template refuses the conversation of '{name}': {error}",
            "change the messages, or use a model whose template takes them",
        ) from error

    def _written(self, messages: Sequence[Message], **how: Any) -> str:
        """Raises Refused if the template refuses, or leaves out a message that is not the assistant's."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise PrlhfError(
                "the data set is conversational and the base model has no chat template",
                "use an instruct model or plain text",
            )
        try:
            text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **self._options, **how)
        except Exception as error:  # a template is a program: it may raise anything
            raise Refused(one_line(error) or type(error).__name__) from error
        for message in messages:
            if message["role"] not in ("assistant", "tool") and message["content"].strip() not in text:
                raise Refused(f"it leaves out a message of the role '{message['role']}'")
        return text

    # ---- what ends a turn ----

    @property
    def end(self) -> str:
        """What the template writes after a response, up to the token that ends the turn, which is included."""
        return self._end[0]

    @property
    def end_id(self) -> int | None:
        """The token that ends a turn; None if the template does not write one."""
        return self._end[1]

    @property
    def end_words(self) -> str:
        """A mark at the end of turns that is several tokens for this tokenizer, such as ChatML's; otherwise ""."""
        found = TAG.search(self.end)
        return found.group() if found and self.end_id is None else ""

    @cached_property
    def _after(self) -> str:
        """Everything that the template writes after a response."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
        try:
            return self._written(talk).rpartition(MARK)[2]
        except (Refused, PrlhfError):
            return ""

    @cached_property
    def _end(self) -> tuple[str, int | None]:
        ids = self._tokenizer(self._after, add_special_tokens=False).input_ids if self._after else []
        added = {id_: str(token) for id_, token in self._tokenizer.added_tokens_decoder.items() if str(token).strip()}
        first = next((at for at, id_ in enumerate(ids) if id_ in added), None)
        if first is None:
            return self._after.rstrip(), None
        mark = ""
        for id_ in takewhile(added.__contains__, ids[first:]):  # Cohere's end is two tokens, of which the second is EOS
            mark += added[id_]
            if id_ == self._tokenizer.eos_token_id and mark in self._after:
                return self._after.partition(mark)[0] + mark, id_
        mark = added[ids[first]]
        return self._after.partition(mark)[0] + mark, ids[first]


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends in an answer for the model to continue."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def without_empty_system(messages: Sequence[Message]) -> list[Message]:
    """`messages` without system messages that are empty, which converted data often have."""
    return [m for m in messages if m["role"] != "system" or m["content"].strip()]


def system_to_user(messages: Sequence[Message]) -> list[Message] | None:
    """The system message at the head put in front of the first user message; None if one of them is missing."""
    user = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if user is None or messages[0]["role"] != "system":
        return None
    asked = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[user]['content']}"}
    return [*messages[1:user], asked, *messages[user + 1 :]]


def opened_thought(text: str) -> tuple[str, str] | None:
    """(opening, closing) tags of a thought that the end of `text` opens, as in prompts of reasoning models."""
    found = THOUGHT.search(text)
    if not found:
        return None
    closings = {"angle": "</{}>", "square": "[/{}]", "start": "<|END_{}|>", "begin": "<|end_of_{}|>"}
    close = next(closings[kind].format(name) for kind, name in found.groupdict().items() if kind != "tag" and name)
    return found["tag"], close


def within(shown: str, answer: str) -> tuple[str, str]:
    """`answer` after `shown`, as (what comes first, the answer).

    If `shown` opens a thought, an answer that opens it too does not open it again, and an answer without a thought is
    preceded by the closing tag, as reasoning models write an empty thought.
    """
    tags = opened_thought(shown)
    if tags is None:
        return "", answer
    opening, closing = tags
    if answer.lstrip().startswith(opening):
        return "", answer.lstrip()[len(opening) :].removeprefix("\n" if shown.endswith("\n") else "")
    return ("", answer) if closing in answer else (f"\n{closing}\n\n", answer)


# ---- responses of several turns ----


def one_answer(row: Comparison, changes: Counter[str]) -> Comparison:
    """`row` with responses of one assistant message each, so that no words of the user are trained as a response.

    A prompt that both responses repeat is removed from them, and turns that both begin with move to the prompt;
    `changes` counts both.

    Raises:
        PrlhfError: a response is then anything but one message of the assistant.
    """
    prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
    if _repeated(prompt, chosen) and _repeated(prompt, rejected):
        changes["repeats"] += 1
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return row if chosen is row.chosen else replace(row, chosen=chosen, rejected=rejected)
    shared = _shared(chosen, rejected)
    if shared:
        changes["turns moved"] += 1
        prompt, chosen, rejected = [*prompt, *chosen[:shared]], chosen[shared:], rejected[shared:]
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        roles = [message["role"] for message in response]
        if roles != ["assistant"]:
            raise PrlhfError(
                f"the {name} response of '{row.id}' is not one message of the assistant but {', '.join(roles)}",
                "put the turns before the last answer into the prompt, and give responses the role 'assistant'",
            )
    return replace(row, prompt=prompt, chosen=chosen, rejected=rejected)


def _repeated(prompt: Text, response: Text) -> bool:
    """Whether a response begins with the whole prompt and continues; a plain prompt must not end within a word."""
    if isinstance(prompt, str) and isinstance(response, str):
        after = response[len(prompt) : len(prompt) + 1]
        return bool(prompt.strip() and after) and response.startswith(prompt) and not (prompt[-1:] + after).isalnum()
    if isinstance(prompt, str) or isinstance(response, str):
        return False
    return len(response) > len(prompt) and response[: len(prompt)] == prompt


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """The number of messages that both begin with, not counting the last message of either."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1)
