"""`reward:RUN`: a trained policy's implicit reward as the judge, read as the user in question."""

from __future__ import annotations

from pathlib import Path

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge.pairs import Pair
from prlhf.model.checkpoint import Policy, load_policy, reference_model
from prlhf.model.scoring import Reference, score
from prlhf.records import Comparison, Text


def reward_scorer(run: str, config: JudgeConfig) -> RewardScorer:
    policy = load_policy(Path(run), config.device, "auto", config.model, config.trust_remote_code)
    reference = Reference(
        reference_model(policy, Path(run), config.model, config.trust_remote_code), policy.tokenizer.pad_token_id
    )
    return RewardScorer(policy, reference, config.batch_size)


class RewardScorer:
    """Implicit rewards of A and B (beta times the log-ratio to the base); users the run does not know are generic."""

    def __init__(self, policy: Policy, reference: Reference, batch_size: int) -> None:
        self._policy, self._reference, self._batch_size = policy, reference, batch_size
        self._encoder = policy.encoder()
        self._index = policy.index_of()

    def __call__(self, pairs: list[Pair]) -> list[tuple[float, float]]:
        encoded = [self._encoder.comparison(self._as_comparison(pair)) for pair in pairs]
        scored = score(
            self._policy.model,
            self._reference,
            encoded,
            [e.user for e in encoded],
            self._policy.config.beta,
            self._policy.tokenizer.pad_token_id,
            self._batch_size,
        )
        return [(s.chosen, s.rejected) for s in scored]

    def _as_comparison(self, pair: Pair) -> Comparison:
        if pair.a.prompt != pair.b.prompt:
            raise PrlhfError(f"prompt '{pair.prompt_id}' differs between A and B", "generate both from one source")
        index = self._index.get(pair.user_id, 0)
        return Comparison(
            id=f"{pair.prompt_id}/{pair.user_id}",
            prompt=pair.prompt,
            chosen=_as_text(pair.a.response, pair.prompt),
            rejected=_as_text(pair.b.response, pair.prompt),
            user_id=pair.user_id,
            user_index=index,
            user_text=self._policy.user_texts.get(pair.user_id, ""),
            prompt_id=pair.prompt_id,
            seen=index > 0,
        )


def _as_text(response: str, prompt: Text) -> Text:
    """The response in the prompt's own format."""
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
