"""`reward:RUN`: a reward model, or the implicit reward of a policy, as the judge, each pair read as its user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from prlhf.config import JudgeConfig
from prlhf.config.judge import LOADING
from prlhf.errors import PrlhfError
from prlhf.judge.judges import LocalJudge, judge, verdicts_by_score
from prlhf.judge.verdicts import Pair, Verdict

if TYPE_CHECKING:
    from prlhf.model.encoding import Encoded


@judge("reward")
class RewardJudge(LocalJudge):
    """Prefers the response with the higher reward; users whom the run was not trained on are generic."""

    metavar, argument_is_path = "RUN", True
    uses = LOADING

    def __init__(self, run: str, config: JudgeConfig) -> None:
        from prlhf.model.rewards import ResponseReader, load_rewards  # imports torch

        super().__init__(run, config)
        trained, self._rewards = load_rewards(
            Path(run), config.device, config.model, config.trust_remote_code, precision=config.precision
        )
        self._reader = ResponseReader(trained)

    @override
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        return verdicts_by_score(self.scores(pairs))

    def scores(self, pairs: list[Pair]) -> list[tuple[float, float]]:
        """The rewards of A and B in each pair. Raises PrlhfError if a pair does not fit the base's context."""
        from prlhf.model.fitting import Fitting
        from prlhf.model.rewards import score

        fitting = Fitting(skip=False)
        encoded = [encoded for _, encoded in fitting.part("pairs of responses", pairs, self._encoded)]
        fitting.check(advice="judge responses to shorter prompts", option="")
        scored = score(self._rewards, encoded, [e.user_index for e in encoded], self.config.batch_size)
        return [(s.chosen, s.rejected) for s in scored]

    def _encoded(self, pair: Pair) -> Encoded:
        if pair.a.prompt != pair.b.prompt:
            raise PrlhfError(f"prompt '{pair.prompt_id}' differs between A and B", "generate both from one source")
        name = f"{pair.prompt_id}/{pair.user_id}"
        return self._reader.encode(pair.prompt, pair.user_id, pair.a.response, pair.b.response, name)
