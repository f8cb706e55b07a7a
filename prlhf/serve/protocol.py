"""Requests as OpenAI's clients send them.

Fields that are not OpenAI's are ignored, as other servers' clients send them always; fields that are, and would change
the response in a way that is not offered here, are refused unless they ask for nothing. Embeddings are never taken: a
user's vectors come from the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import override

from prlhf.dataset import Message, Text

MOST_STOPS = 4
EMBEDDINGS = ("prompt_embeds", "prompt_embeddings", "input_embeds", "inputs_embeds")
# fields that are not offered, and the values with which they ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
}

Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream has besides the response."""

    include_usage: bool = False


class Body(BaseModel):
    """The body of a request, whose texts are whole characters: JSON can spell half of one."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def whole_characters(cls, values: Any) -> Any:
        """Refuse half of a surrogate pair. What is not a mapping is refused later."""
        try:
            if isinstance(values, dict):
                json.dumps(values, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise ValueError("it holds half of a surrogate pair, or is nested too deeply") from None
        return values


class Ask(Body):
    """What both kinds of requests for responses have."""

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    max_tokens: int | None = Field(None, ge=-1)  # -1, as llama.cpp's clients send it: not given
    n: int = Field(1, ge=1)
    stop: Stop | list[Stop] | None = None
    seed: int | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    prlhf_version: int | None = Field(None, ge=0)  # a former version of the user, as GET /v1/users/ann lists them

    @model_validator(mode="before")
    @classmethod
    def refuse_what_is_not_offered(cls, values: Any) -> Any:
        """Refuse embeddings, and fields that would have to change the response; None is a field's default."""
        if not isinstance(values, dict):
            return values
        for name in EMBEDDINGS:
            if values.get(name) is not None:
                raise ValueError(f"{name} is not accepted: a user's vectors come from the run; say who asks with user")
        for name, idle in NEUTRAL.items():
            if values.get(name) not in idle:
                raise ValueError(f"{name} is not offered by this server; leave it out")
        return {name: value for name, value in values.items() if value is not None}

    @field_validator("stop")
    @classmethod
    def few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        """As many stop texts as OpenAI allows."""
        if isinstance(stop, list) and len(stop) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} texts")
        return stop

    @property
    def stops(self) -> list[str]:
        """The texts that end a response."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        """The longest response; None if the request does not say."""
        return None if self.max_tokens == -1 else self.max_tokens

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class MessagePart(BaseModel):
    """A part of a message, of which only text is read."""

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def only_text(self) -> MessagePart:
        """Refuse images, audio, files, and vectors."""
        if self.type != "text" or self.text is None:
            raise ValueError(f"a part of type '{self.type}' is not accepted, only text is")
        return self


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[MessagePart]

    def plain(self) -> Message:
        """The message as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


def plain_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """A conversation as chat templates take it."""
    return [message.plain() for message in messages]


class ChatAsk(Ask):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=-1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    @override
    def most_tokens(self) -> int | None:
        """The newer name counts, if both are given."""
        given = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if given == -1 else given

    @property
    def prompts(self) -> list[Text]:
        """The conversation, as one prompt."""
        return [plain_messages(self.messages)]

    @property
    def top(self) -> int | None:
        """How many alternatives of each token are asked for; None: no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class FeedbackAsk(Body):
    """POST /v1/feedback: which of two responses to a prompt a user chose."""

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[ChatMessage], Field(min_length=1)]
    chosen: str
    rejected: str

    @model_validator(mode="after")
    def a_choice(self) -> FeedbackAsk:
        """Refuse two equal responses: they say nothing of a user."""
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same")
        return self

    @property
    def text(self) -> Text:
        """The prompt as it is kept."""
        return self.prompt if isinstance(self.prompt, str) else plain_messages(self.prompt)


class RollbackAsk(Body):
    """POST /v1/users/rollback: which version a user is to be again; None: the one before."""

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    version: int | None = Field(None, ge=0)


class CompletionAsk(Ask):
    """POST /v1/completions."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None

    @model_validator(mode="after")
    def no_choice_here(self) -> CompletionAsk:
        """Refuse to write more than is returned."""
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not offered by this server; leave it out")
        return self

    @property
    def prompts(self) -> Sequence[Text]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def top(self) -> int | None:
        """How many alternatives of each token are asked for; None: no log-probs."""
        return self.logprobs
