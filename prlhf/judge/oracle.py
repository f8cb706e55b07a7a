"""`oracle:DATASET`: the exact judge of the synthetic forum, which knows every user's true taste and the grammar."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from prlhf.config import JudgeConfig
from prlhf.dataset import GENERIC, read_prepared
from prlhf.errors import PrlhfError
from prlhf.forum import posts
from prlhf.forum.tastes import Taste, prefers, understand
from prlhf.judge.judges import LocalJudge, judge
from prlhf.judge.verdicts import Pair, Verdict
from prlhf.responses import Response

VERDICTS: dict[int, Verdict] = {1: "A", 0: "tie", -1: "B"}


@judge("oracle")
class Oracle(LocalJudge):
    """Prefers what the user's taste in a prepared data set prefers; the generic user values form and truth alone."""

    metavar, argument_is_path = "DATASET", True

    def __init__(self, dataset: str, config: JudgeConfig) -> None:
        super().__init__(dataset, config)
        self._tastes = {user.id: understand(user.preference) for user in read_prepared(Path(dataset)).users}
        if not any(taste != Taste() for taste in self._tastes.values()):
            raise PrlhfError(f"{dataset} does not know its users' tastes", "give demo-profiles or demo-crowd, prepared")
        self._tastes[GENERIC] = Taste()

    @override
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        return [self._verdict(pair) for pair in pairs]

    def _verdict(self, pair: Pair) -> Verdict:
        if pair.user_id not in self._tastes:
            hint = "give the data set that the users are from"
            raise PrlhfError(f"the oracle's data set has no user '{pair.user_id}'", hint)
        return VERDICTS[prefers(self._tastes[pair.user_id], _graded(pair.a), _graded(pair.b))]


def _graded(response: Response) -> posts.Verdict:
    return posts.grade_summary(str(response.prompt), response.response, response.finish_reason == "stop")
