"""`reward:RUN`: a reward model, or a policy's implicit reward, as the judge; read as the user in question."""

from __future__ import annotations

from pathlib import Path

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge.pairs import Pair
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.scoring import ResponseReader, Rewards, load_rewards, score


def reward_scorer(run: str, config: JudgeConfig) -> RewardScorer:
    """The scorer of the reward model, or of the policy's implicit reward, in the run folder `run`."""
    trained, rewards = load_rewards(Path(run), config.device, config.model, config.trust_remote_code)
    return RewardScorer(ResponseReader(trained), rewards, config.batch_size)


class RewardScorer:
    """Rewards of A and B; users the run does not know are generic."""

    def __init__(self, reader: ResponseReader, rewards: Rewards, batch_size: int) -> None:
        self._reader, self._rewards, self._batch_size = reader, rewards, batch_size

    def __call__(self, pairs: list[Pair]) -> list[tuple[float, float]]:
        """The rewards of A and B of each pair."""
        fitting = Fitting(skip=False)
        encoded = [encoded for _, encoded in fitting.part("pairs of responses", pairs, self._encoded)]
        fitting.check(advice="judge responses to shorter prompts", option="")
        scored = score(self._rewards, encoded, [e.user_index for e in encoded], self._batch_size)
        return [(s.chosen, s.rejected) for s in scored]

    def _encoded(self, pair: Pair) -> Encoded:
        if pair.a.prompt != pair.b.prompt:
            raise PrlhfError(f"prompt '{pair.prompt_id}' differs between A and B", "generate both from one source")
        name = f"{pair.prompt_id}/{pair.user_id}"
        return self._reader.encode(pair.prompt, pair.user_id, pair.a.response, pair.b.response, name)
