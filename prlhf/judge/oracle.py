"""`oracle:DATASET`: the exact judge of the made-up forum, who knows every user's true taste and the grammar."""

from __future__ import annotations

from pathlib import Path

from prlhf.dataset import GENERIC, read_prepared
from prlhf.errors import PrlhfError
from prlhf.forum import posts
from prlhf.forum.tastes import Taste, prefers, understand
from prlhf.judge.decisions import Verdict
from prlhf.judge.judges import Judge
from prlhf.judge.pairs import Pair
from prlhf.responses import Response

VERDICTS: dict[int, Verdict] = {1: "A", 0: "tie", -1: "B"}


def oracle_judge(dataset: str) -> Judge:
    """The oracle of a prepared data set that says what each user prefers."""
    tastes = {user.id: understand(user.preference) for user in read_prepared(Path(dataset)).users}
    if not any(taste != Taste() for taste in tastes.values()):
        raise PrlhfError(f"{dataset} does not know its users' tastes", "give demo-profiles or demo-crowd, prepared")
    tastes[GENERIC] = Taste()  # nobody in particular: form and truth alone count

    def verdict(pair: Pair) -> Verdict:
        if pair.user_id not in tastes:
            raise PrlhfError(f"the oracle's data set has no user '{pair.user_id}'", "give the one the users are from")
        return VERDICTS[prefers(tastes[pair.user_id], _checked(pair.a), _checked(pair.b))]

    return lambda pairs: [verdict(pair) for pair in pairs]


def _checked(response: Response) -> posts.Verdict:
    return posts.grade_summary(str(response.prompt), response.response, response.finish_reason == "stop")
