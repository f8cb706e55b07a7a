"""Rows of responses for the judge's tests."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from prlhf.config import JudgeConfig
from prlhf.judge.judges import LocalJudge, find_judges
from prlhf.judge.verdicts import Pair, Verdict
from prlhf.responses import Response

MakeConfig = Callable[..., JudgeConfig]


def local_judge(config: JudgeConfig) -> Callable[[list[Pair]], list[Verdict]]:
    """The verdicts of the only judge that `config` names."""
    (judge,) = find_judges(config).values()
    assert isinstance(judge, LocalJudge)
    return judge.verdicts


def row(prompt: str, user: str, response: str = "", index: int | None = None) -> Response:
    """A response to prompt `prompt`; users other than `generic` have an index unless one is given."""
    known = 0 if user == "generic" else 1
    return Response(prompt, user, known if index is None else index, f"text of {prompt}", response, 1, 1, "stop", {})


def write(path: Path, rows: list[Response]) -> Path:
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows), encoding="utf-8")
    return path
