"""The chat template of an exported model: the run's prompts, with the tokens of the user who is named in front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prlhf.errors import PrlhfError
from prlhf.export.compare import Sample
from prlhf.model.checkpoint import Policy

PLAIN = '{{ bos_token }}{%- for message in messages -%}{{ message["content"] }}{%- endfor -%}'
USERS = """\
{%- set prlhf_users = USERS -%}
{%- set prlhf_user = user | default("FIRST") -%}
{%- if prlhf_user not in prlhf_users -%}\
{{ raise_exception("user '" ~ prlhf_user ~ "' is not in this model") }}{%- endif -%}
{%- for i in range(prlhf_users[prlhf_user][1]) -%}<|user:{{ prlhf_users[prlhf_user][0] }}:{{ i }}|>{%- endfor -%}
{%- if prlhf_users[prlhf_user][2] -%}{%- set bos_token = "" -%}{%- endif %}"""


@dataclass(frozen=True)
class Prefix:
    """What stands in front of a user's prompts: T_u vectors, and where the run reads a text about the user, its rows.

    `begun`: whether the token that begins texts is among them, so that it does not stand in front of the prompt.
    """

    user: str
    name: str  # of the user, in names of tokens and files
    vectors: Tensor  # [n, d] in fp32, as the base's layers read them
    begun: bool = False

    @property
    def tokens(self) -> list[str]:
        """A name for each vector: `<|user:ann:0|>`, …."""
        return [f"<|user:{self.name}:{i}|>" for i in range(len(self.vectors))]


def template_of(policy: Policy, prefixes: Sequence[Prefix] = ()) -> str:
    """The chat template of the run, with its options; a run of plain prompts joins the contents of the messages.

    With `prefixes` the variable `user` says whose tokens stand in front: those of the first if it is not given.
    """
    tokenizer = policy.tokenizer
    if policy.conversational is False or not tokenizer.chat_template:
        own = PLAIN if begins(tokenizer) else PLAIN.removeprefix("{{ bos_token }}")
    else:
        own = _options(policy.config.template_options) + _default(tokenizer.chat_template)
    if not prefixes:
        return own
    users = {one.user: [one.name, len(one.vectors), one.begun] for one in prefixes}
    listed = json.dumps(users, ensure_ascii=False)
    first = json.dumps(prefixes[0].user, ensure_ascii=False)
    return USERS.replace('"FIRST"', first).replace("USERS", listed) + own


def prompt_ids(tokenizer: Any, row: Sample, **variables: Any) -> list[int]:
    """The ids of a row's prompt by the template of an exported tokenizer."""
    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
    begun = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how, **variables)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def check_ids(row: Sample, ids: Sequence[int]) -> None:
    """Check that the prompt that follows the user's tokens ends what the run reads. Raises PrlhfError."""
    if not ids or row.before[-len(ids) :] != list(ids):
        raise PrlhfError(
            f"the chat template, as it is exported, does not write a prompt of '{row.user}' as the run reads it",
            "change the base's chat template so that it takes these conversations as they are",
        )


def begins(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS in front of texts."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a").input_ids)[:1] == [bos]


def _options(options: dict[str, Any]) -> str:
    """The run's template options, for requests that do not give them."""
    lines = "{{%- if {0} is not defined -%}}{{%- set {0} = {1} -%}}{{%- endif -%}}"
    return "".join(lines.format(name, json.dumps(value, ensure_ascii=False)) for name, value in options.items())


def _default(template: str | dict[str, str]) -> str:
    return template if isinstance(template, str) else template["default"]
