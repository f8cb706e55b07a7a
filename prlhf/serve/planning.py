"""From a request and who asks to the jobs of the engine, by the same steps as `prlhf generate`."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, replace

from prlhf.config import GenerateConfig, ServeConfig
from prlhf.dataset import Text
from prlhf.generate.baselines import baseline_of
from prlhf.generate.requests import Planner, WriteRequest, row_seed
from prlhf.generate.sampling import Sampling
from prlhf.model.checkpoint import Policy
from prlhf.serve.engine import Job, WrittenPiece
from prlhf.serve.faults import ApiError
from prlhf.serve.protocol import ChatAsk, CompletionAsk
from prlhf.serve.roster import ServedUser


@dataclass(frozen=True)
class Planned:
    """The jobs of a request, prompt by prompt, equally many for each, and how many tokens each prompt has."""

    jobs: list[Job]
    prompts: list[int]


class Plans:
    """Makes jobs for `policy`; its methods may be called in any thread."""

    def __init__(self, policy: Policy, config: ServeConfig) -> None:
        self._policy, self._config = policy, config
        self._lock = threading.Lock()  # a tokenizer is not for two threads at a time
        self.plain = policy.conversational is False or not policy.tokenizer.chat_template

    def jobs(self, ask: ChatAsk | CompletionAsk, person: ServedUser) -> Planned:
        """The jobs of a request.

        Raises:
            ApiError: it asks for more than the limits allow.
            PrlhfError: a prompt does not fit, or is not one that the model takes.
        """
        prompts = [self.prompt(each) for each in ask.prompts]
        if len(prompts) * ask.n > self._config.max_choices:
            most = self._config.max_choices
            raise ApiError(400, f"n: at most {most} responses to one request, of all its prompts", param="n")
        config = self._generate_config(ask)
        with self._lock:
            planner = Planner(self._policy, baseline_of(config), config)
            requests = [planner.request(prompt, person.reader) for prompt in prompts]
        most = self._config.max_prompt_tokens
        if any(len(request.ids) > most for request in requests):
            raise ApiError(400, f"the prompt has more than {most:,} tokens", "context_length_exceeded")
        jobs = [self._job(replace(r, candidate=i), ask, person, config) for r in requests for i in range(ask.n)]
        return Planned(jobs, [len(request.ids) for request in requests])

    def _generate_config(self, ask: ChatAsk | CompletionAsk) -> GenerateConfig:
        """The settings with which `prlhf generate` would write the same."""
        given, most = ask.most_tokens, self._config.max_tokens
        if given is not None and not 1 <= given <= most:
            raise ApiError(400, f"max_tokens: from 1 to {most:,} on this server", param="max_tokens")
        return GenerateConfig.model_validate(
            {
                "max_new_tokens": min(most, max(1, self._policy.base.context // 4)) if given is None else given,
                "temperature": ask.temperature,
                "seed": secrets.randbits(62) if ask.seed is None else ask.seed,
                "template_options": self._config.template_options,
            }
            | ({"top_p": ask.top_p} if ask.temperature > 0 else {})
        )

    def prompt(self, asked: Text) -> Text:
        """A prompt in the format of the run.

        One that was trained on plain text takes the text of a conversation of one message; if it was trained on
        conversations, plain text becomes a user's message. Raises ApiError for longer conversations on plain text.
        """
        if isinstance(asked, str):
            return [{"role": "user", "content": asked}] if self._policy.conversational else asked
        if not self.plain:
            return asked
        if len(asked) != 1:
            raise ApiError(
                400, "this run was trained on plain prompts: send one message, or use /v1/completions", param="messages"
            )
        return asked[0]["content"]

    def _job(
        self, request: WriteRequest, ask: ChatAsk | CompletionAsk, person: ServedUser, config: GenerateConfig
    ) -> Job:
        return Job(
            ids=request.ids,
            person=person,
            seed=row_seed(config.seed, request),
            room=config.max_new_tokens,
            sampling=Sampling(config.temperature, config.top_p),
            stops=ask.stops,
            top=ask.top,
            deliver=_nobody,
        )


def _nobody(_: WrittenPiece) -> None:
    """Until somebody reads the pieces."""
