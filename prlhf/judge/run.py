"""`prlhf judge`: two files of responses to verdicts and win-rates of A against B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.atomic import atomic_dir
from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge.judges import Judge, Verdict, find_judge
from prlhf.judge.pairs import Pair, Pairing, pair
from prlhf.judge.statistics import CONFIDENCE, OUTCOMES, summarize
from prlhf.progress import SILENT, Progress
from prlhf.records import GENERIC
from prlhf.responses import read_responses

RESULTS, VERDICTS = "results.json", "verdicts.jsonl"


def judge_responses(a_path: Path, b_path: Path, config: JudgeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Judge A against B, write `results.json` and `verdicts.jsonl` into `config.out`, return the results."""
    refuse_foreign(config.out, (a_path, b_path))
    judge = find_judge(config)
    pairing = pair(read_responses(a_path), read_responses(b_path))
    verdicts = _judge_all(judge, pairing.pairs, config, progress)
    results = _settings(a_path, b_path, config) | _describe(pairing) | win_rates(pairing.pairs, verdicts, config)
    with atomic_dir(config.out) as folder:
        (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        lines = (
            json.dumps(_row(p, v), ensure_ascii=False) + "\n" for p, v in zip(pairing.pairs, verdicts, strict=True)
        )
        (folder / VERDICTS).write_text("".join(lines), encoding="utf-8")
    return results


def win_rates(pairs: list[Pair], verdicts: list[Verdict], config: JudgeConfig) -> dict[str, Any]:
    """The headline over users, and the same by kind of user: `seen`, `unseen`, `generic`.

    The generic user is nobody's taste: it counts in the headline only where there is nobody else.
    """
    kinds = sorted({p.kind for p in pairs})
    headline = [kind for kind in kinds if kind != GENERIC] or kinds
    by_kind = {kind: _summary(pairs, verdicts, [kind], config) for kind in kinds}
    for summary in by_kind.values():
        del summary["users"]  # listed once, in the headline
    return _summary(pairs, verdicts, headline, config) | {"by_kind": by_kind}


def _summary(pairs: list[Pair], verdicts: list[Verdict], kinds: list[str], config: JudgeConfig) -> dict[str, Any]:
    rows = [(OUTCOMES[v], p.user_id) for p, v in zip(pairs, verdicts, strict=True) if p.kind in kinds]
    outcomes = np.array([outcome for outcome, _ in rows], dtype=np.int64)
    return summarize(outcomes, [user for _, user in rows], config.bootstrap, config.seed)


def _judge_all(judge: Judge, pairs: list[Pair], config: JudgeConfig, progress: Progress) -> list[Verdict]:
    verdicts: list[Verdict] = []
    progress.start("judging", len(pairs))
    try:
        for start in range(0, len(pairs), config.batch_size):
            batch = pairs[start : start + config.batch_size]
            verdicts += judge(batch)
            progress.advance(len(batch))
    finally:
        progress.finish()
    return verdicts


def refuse_foreign(out: Path, inputs: tuple[Path, ...] = ()) -> None:
    """`out` is replaced as a whole: it must be new, or hold an earlier judgement and none of the inputs."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / RESULTS).is_file())):
        raise PrlhfError(f"{out} exists and is no judgement", "choose another --out")
    for path in inputs:
        if out.resolve() in path.resolve().parents and out.exists():
            raise PrlhfError(f"{path} lies in {out}, which the judgement replaces", "choose another --out")


def _settings(a_path: Path, b_path: Path, config: JudgeConfig) -> dict[str, Any]:
    return {
        "judge": config.judge,
        "a": str(a_path),
        "b": str(b_path),
        "seed": config.seed,
        "bootstrap": config.bootstrap,
        "confidence": CONFIDENCE,
    }


def _describe(pairing: Pairing) -> dict[str, Any]:
    users = {(p.user_id, p.kind) for p in pairing.pairs}
    return {
        "n_users_seen": sum(kind == "seen" for _, kind in users),
        "n_users_unseen": sum(kind == "unseen" for _, kind in users),
        "unpaired_a": pairing.unpaired_a,
        "unpaired_b": pairing.unpaired_b,
        "generic_for_a": pairing.generic_for_a,
        "generic_for_b": pairing.generic_for_b,
    }


def _row(p: Pair, verdict: Verdict) -> dict[str, Any]:
    return {
        "prompt_id": p.prompt_id,
        "user_id": p.user_id,
        "kind": p.kind,
        "verdict": verdict,
        "a_user_id": p.a.user_id,  # the generic user's where its response stands in
        "b_user_id": p.b.user_id,
        "a": p.a.response,
        "b": p.b.response,
    }
