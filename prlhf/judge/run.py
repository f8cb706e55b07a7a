"""`prlhf judge`: two files of responses to win-rates of A against B, and `--calibrate`: how good is the judge?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.config import JudgeConfig
from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError
from prlhf.folders import claim, replacing
from prlhf.judge.calibrate import agreements, calibration, human_pairs
from prlhf.judge.judges import AskingJudge, Judge, find_judges
from prlhf.judge.statistics import CONFIDENCE, OUTCOMES, codes_of, length_controlled, significance, summarize
from prlhf.judge.verdicts import Decision, Pair, Pairing, pair, position_bias, sample
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress
from prlhf.responses import read_responses, words
from prlhf.results import Calibrations, CostEstimate, Judgement, ShownCall

RESULTS, VERDICTS, CALIBRATION, REPORT = "results.json", "verdicts.jsonl", "calibration.jsonl", "report.html"
Decided = dict[str, list[Decision]]  # by judge


def judge_responses(
    a_path: Path, b_path: Path, config: JudgeConfig, progress: Progress = SILENT, command: str = ""
) -> Judgement:
    """Judge A against B; write `results.json`, `verdicts.jsonl` and `report.html` into `config.out`.

    With several judges, the results of the first are at the top level, those of each under `judges`, and their
    agreement under `agreement`. With `config.calibrate` each judge is calibrated, too. Returns the results.

    Raises:
        PrlhfError: a setting, the responses or the folder is refused, or a judge gives no verdict.
        Interrupted: Ctrl-C; the answers of a server were stored first.
    """
    claim(config.out, "judgement", inputs=_inputs(config, a_path, b_path))
    config, judges, humans = _prepared(config)
    pairing = _paired(a_path, b_path, config)
    calibrated = _decide(judges, humans, progress)
    decided = _decide(judges, pairing.pairs, progress)
    by_judge = {
        name: win_rates(pairing.pairs, decided[name], config) | judge.settings() for name, judge in judges.items()
    }
    results = _settings(a_path, b_path, config) | _describe(pairing) | next(iter(by_judge.values()))
    if len(judges) > 1:
        results |= {"judges": by_judge, "agreement": agreements(decided)}
    results |= _calibrations(humans, calibrated, config)
    _write(config.out, results, {VERDICTS: (pairing.pairs, decided), CALIBRATION: (humans, calibrated)}, command)
    return Judgement.model_validate(results | {"out": config.out})


def calibrate_judges(config: JudgeConfig, progress: Progress = SILENT, command: str = "") -> Calibrations:
    """Compare the judges with people on `config.calibrate`; writes the same files as `judge_responses`."""
    claim(config.out, "judgement", inputs=_inputs(config))
    config, judges, humans = _prepared(config)
    calibrated = _decide(judges, humans, progress)
    settings = {name: judge.settings() for name, judge in judges.items()}
    results: dict[str, Any] = {"judge": config.judge, "dataset": str(config.calibrate), "seed": config.seed}
    results |= {"settings": settings} | _calibrations(humans, calibrated, config)
    if len(judges) > 1:
        results["agreement"] = agreements(calibrated)
    _write(config.out, results, {CALIBRATION: (humans, calibrated)}, command)
    return Calibrations.model_validate(results | {"out": config.out})


def dry_run(a_path: Path | None, b_path: Path | None, config: JudgeConfig) -> list[CostEstimate]:
    """`--dry-run`: the calls, tokens and cost of every judge that asks a server. Sends nothing."""
    config, judges, humans = _prepared(config)
    asking = [judge for judge in judges.values() if isinstance(judge, AskingJudge)]
    if not asking:
        raise PrlhfError(f"--judge {config.judge} sends nothing", "leave out --dry-run, or use it with --judge llm")
    pairs = humans + (_paired(a_path, b_path, config).pairs if a_path and b_path else [])
    return [judge.estimate(pairs) for judge in asking]


def shown_prompt(a_path: Path | None, b_path: Path | None, config: JudgeConfig, number: int) -> list[ShownCall]:
    """`--show-prompt N`: the calls of the first asking judge about the N-th pair, from 1. Sends nothing."""
    config, judges, humans = _prepared(config)
    pairs = _paired(a_path, b_path, config).pairs if a_path and b_path else humans
    asking = next((judge for judge in judges.values() if isinstance(judge, AskingJudge)), None)
    if asking is None:
        raise PrlhfError(f"--judge {config.judge} sends no messages", "use it with --judge llm")
    if not 1 <= number <= len(pairs):
        raise PrlhfError(f"--show-prompt {number}: there are comparisons 1 to {len(pairs)}", "choose one of these")
    return asking.messages(pairs[number - 1])


def win_rates(pairs: Sequence[Pair], decisions: Sequence[Decision], config: JudgeConfig) -> dict[str, Any]:
    """Win-rates over all users, and by kind of user: `seen`, `unseen`, `generic`.

    The generic user has no taste of its own, so it counts in the first only if there is no other user. Pairs without a
    verdict are in no rate; `unparsed` counts them, with the rates if A had lost, or won, all of them. Raises PrlhfError
    if no pair has a verdict.
    """
    judged = [(p, d) for p, d in zip(pairs, decisions, strict=True) if d.verdict != "unparsed"]
    if not judged:
        raise _no_verdict(decisions, config)
    kinds = sorted({p.kind for p, _ in judged})
    headline = [kind for kind in kinds if kind != GENERIC] or kinds
    by_kind = {kind: _summary([one for one in judged if one[0].kind == kind], config) for kind in kinds}
    for summary in by_kind.values():
        del summary["users"]  # listed once, in the headline
    found = _summary([one for one in judged if one[0].kind in headline], config)
    missing = sum(p.kind in headline for p in pairs) - found["n_samples"]
    return found | {
        "by_kind": by_kind,
        "position_bias": position_bias(decisions),
        "unparsed": _bounds(found, missing),
    }


def _no_verdict(decisions: Sequence[Decision], config: JudgeConfig) -> PrlhfError:
    """The error if no pair has a verdict, with the reason that the answers suggest."""
    calls = [call for decision in decisions for call in decision.calls]
    message = f"none of {len(decisions)} pairs has a verdict"
    if cut := sum(call.finish_reason == "length" for call in calls):
        message += f": {cut} of {len(calls)} answers were cut off at max_answer_tokens = {config.max_answer_tokens}"
        return PrlhfError(message, "raise --max-answer-tokens: a reasoning model thinks before it answers")
    if lost := sum(call.finish_reason in ("filtered", "empty") for call in calls):
        message += f": the server gave no answer to {lost} of {len(calls)} requests"
        return PrlhfError(message, "try another model")
    first = f"the first answer: {calls[0].answer!r:.80}" if calls[0].answer else "the first answer is empty"
    return PrlhfError(f"{message}; {first}", "try another model or another --prompt (all answers: $PRLHF_CACHE/judge)")


def _bounds(summary: Mapping[str, Any], missing: int) -> dict[str, Any]:
    n = summary["n_samples"]
    won = summary["per_sample"]["tie_half"]["rate"] * n
    return {"pairs": missing, "rate_if_lost": won / (n + missing), "rate_if_won": (won + missing) / (n + missing)}


def _summary(judged: Sequence[tuple[Pair, Decision]], config: JudgeConfig) -> dict[str, Any]:
    outcomes = np.array([OUTCOMES[d.verdict] for _, d in judged], dtype=np.int64)
    users = [p.user_id for p, _ in judged]
    found = summarize(outcomes, users, config.bootstrap, config.seed)
    longer = np.array([float(words(p.a.response) - words(p.b.response)) for p, _ in judged])
    return found | {
        "significance": significance(found),
        "length_controlled": length_controlled(outcomes, longer, codes_of(users)[1], config.seed),
    }


def _prepared(config: JudgeConfig) -> tuple[JudgeConfig, dict[str, Judge], list[Pair]]:
    """The judges and the comparisons to calibrate them on, which also describe the users unless `dataset` is given."""
    if config.calibrate is not None and config.dataset is None:
        config = config.model_copy(update={"dataset": config.calibrate})
    judges = find_judges(config)
    return config, judges, human_pairs(config.calibrate, config) if config.calibrate is not None else []


def _paired(a_path: Path, b_path: Path, config: JudgeConfig) -> Pairing:
    pairing = pair(read_responses(a_path), read_responses(b_path))
    return replace(pairing, pairs=sample(pairing.pairs, config.limit, config.seed))


def _decide(judges: Mapping[str, Judge], pairs: Sequence[Pair], progress: Progress) -> Decided:
    return {name: judge(pairs, progress) for name, judge in judges.items()} if pairs else {}


def _calibrations(humans: Sequence[Pair], calibrated: Decided, config: JudgeConfig) -> dict[str, Any]:
    if not calibrated:
        return {}
    found = {name: calibration(humans, decisions, config) for name, decisions in calibrated.items()}
    return {"calibrated_on": str(config.calibrate), "calibration": found}


def _inputs(config: JudgeConfig, *responses: Path) -> list[Path]:
    """The files that are read, and must not be replaced."""
    named = [config.calibrate, config.dataset, config.prompt, config.prices]
    return [*responses, *(path for path in named if path is not None)]


def _settings(a_path: Path, b_path: Path, config: JudgeConfig) -> dict[str, Any]:
    return {
        "judge": config.judge,
        "a": str(a_path),
        "b": str(b_path),
        "seed": config.seed,
        "limit": config.limit,
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


def _write(
    out: Path, results: dict[str, Any], files: Mapping[str, tuple[Sequence[Pair], Decided]], command: str
) -> None:
    from prlhf.judge.report import write_judge_report  # imports matplotlib

    with replacing(out, "judgement") as folder:
        (folder / RESULTS).write_text(json_text(results, indent=2) + "\n", encoding="utf-8")
        for name, (pairs, decided) in files.items():
            if decided:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(pairs, decided))
                (folder / name).write_text("".join(lines), encoding="utf-8")
        write_judge_report(folder / REPORT, results, files.get(VERDICTS, ([], {})), command)


def _rows(pairs: Sequence[Pair], decided: Decided) -> Iterable[dict[str, Any]]:
    """The rows of verdicts.jsonl and calibration.jsonl: one per call."""
    for name, decisions in decided.items():
        for p, decision in zip(pairs, decisions, strict=True):
            for call in decision.calls:
                yield {
                    "judge": name,
                    "prompt_id": p.prompt_id,
                    "user_id": p.user_id,
                    "kind": p.kind,
                    "verdict": call.verdict,
                    "order": call.order,
                    "pair_verdict": decision.verdict,
                    "consistent": decision.consistent,
                    "answer": call.answer,
                    "labels": call.labels,
                    "attempts": call.attempts,
                    "finish_reason": call.finish_reason,
                    "request": call.request,
                    "prompt_tokens": call.prompt_tokens,
                    "completion_tokens": call.completion_tokens,
                    "seconds": call.seconds,
                    "a_user_id": p.a.user_id,  # `generic` if the generic response stands in
                    "b_user_id": p.b.user_id,
                    "a": p.a.response,
                    "b": p.b.response,
                }
