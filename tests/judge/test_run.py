import json
from pathlib import Path
from typing import Any

import pytest
from judge_rows import row, write

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.extensions import JUDGES
from prlhf.judge.judges import LocalJudge
from prlhf.judge.run import judge_responses
from prlhf.recipes import resolve

PERSONAL = [
    row("p1", "anna", "one"),
    row("p2", "anna", "one two"),
    row("p1", "ben", "one two three four"),
    row("p2", "ben", "one two three"),
    row("p1", "zoe", "one two three", index=0),
    row("p1", "generic", "one two three"),
    row("p9", "anna", "not in B"),
]
VANILLA = [row("p1", "generic", "one two three"), row("p2", "generic", "one two three")]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "a.jsonl", PERSONAL), write(tmp_path / "b.jsonl", VANILLA)


def config(tmp_path: Path, **values: Any) -> JudgeConfig:
    return resolve(JudgeConfig, {"judge": "rule:shorter", "out": tmp_path / "judged", "bootstrap": 100}, values)


def test_personalized_against_vanilla(files: tuple[Path, Path], tmp_path: Path) -> None:
    results = judge_responses(*files, config(tmp_path, seed=5))
    # anna wins twice; ben loses once and ties once; zoe ties; generic against generic stays out of the headline
    assert (results.n_samples, results.wins, results.ties, results.losses) == (5, 2, 2, 1)
    assert [(u["user_id"], u["verdict"]) for u in results.users] == [
        ("anna", "win"),
        ("ben", "lose"),
        ("zoe", "tie"),
    ]
    assert (results.n_users_seen, results.n_users_unseen) == (2, 1)
    assert {kind: (s["n_samples"], s["wins"]) for kind, s in results.by_kind.items()} == {
        "generic": (1, 0), "seen": (4, 2), "unseen": (1, 0),
    }  # fmt: skip
    assert (results.judge, results.seed, results.bootstrap) == ("rule:shorter", 5, 100)
    assert (results.a, results.b) == (str(files[0]), str(files[1]))
    assert {k: getattr(results, k) for k in ("unpaired_a", "unpaired_b", "generic_for_a", "generic_for_b")} == {
        "unpaired_a": 1, "unpaired_b": 0, "generic_for_a": 0, "generic_for_b": 5,
    }  # fmt: skip


def test_a_limit_draws_pairs_by_the_seed(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = [judge_responses(*files, config(tmp_path, limit=3, seed=seed)) for seed in (0, 0, 1)]
    drawn = [[(u["user_id"], u["n_samples"]) for u in results.users] for results in found]
    assert [results.n_samples + results.by_kind.get("generic", {}).get("n_samples", 0) for results in found] == [3] * 3
    assert drawn[0] == drawn[1] != drawn[2]
    assert found[0].unpaired_a == 1


def test_files_hold_what_is_returned(files: tuple[Path, Path], tmp_path: Path) -> None:
    results = judge_responses(*files, config(tmp_path))
    out = tmp_path / "judged"
    assert sorted(path.name for path in out.iterdir()) == [
        "prlhf.json",
        "report.html",
        "results.json",
        "verdicts.jsonl",
    ]
    assert json.loads((out / "results.json").read_text()) == results.summary()
    assert results.out == out
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["prompt_id"], v["user_id"], v["b_user_id"], v["kind"], v["verdict"]) for v in verdicts] == [
        ("p1", "generic", "generic", "generic", "tie"),
        ("p1", "zoe", "generic", "unseen", "tie"),
        ("p1", "anna", "generic", "seen", "A"),
        ("p2", "anna", "generic", "seen", "A"),
        ("p1", "ben", "generic", "seen", "B"),
        ("p2", "ben", "generic", "seen", "tie"),
    ]
    assert verdicts[2]["a"] == "one"


def test_generic_alone_is_the_headline(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", VANILLA), write(tmp_path / "b.jsonl", VANILLA)
    results = judge_responses(a, b, config(tmp_path))
    assert (results.n_samples, results.ties, results.clustered_by) == (2, 2, "sample")


def test_order_and_batches_do_not_matter(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = judge_responses(*files, config(tmp_path))
    verdicts = (tmp_path / "judged/verdicts.jsonl").read_bytes()
    write(files[0], PERSONAL[::-1])
    assert judge_responses(*files, config(tmp_path, batch_size=1)) == whole
    assert (tmp_path / "judged/verdicts.jsonl").read_bytes() == verdicts


def test_a_former_judgement_is_replaced_and_anything_else_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "judged"
    out.mkdir()
    judge_responses(*files, config(tmp_path))  # an empty folder will do
    judge_responses(*files, config(tmp_path, judge="rule:longer"))
    assert json.loads((out / "results.json").read_text())["judge"] == "rule:longer"
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("dear")
    for place, why in ((other, "exists and is not a judgement: it holds"), (other / "chapter.txt", "is a file")):
        with pytest.raises(PrlhfError, match=f"{why}.*; choose another --out"):
            judge_responses(*files, config(tmp_path, out=place))
    assert (other / "chapter.txt").read_text() == "dear"


def test_inputs_inside_the_old_judgement_are_not_replaced(files: tuple[Path, Path], tmp_path: Path) -> None:
    judge_responses(*files, config(tmp_path))
    inside = write(tmp_path / "judged" / "a.jsonl", PERSONAL)
    with pytest.raises(PrlhfError, match=r"a\.jsonl is read, and lies in .*judged"):
        judge_responses(inside, files[1], config(tmp_path))
    assert inside.exists()


def test_nothing_is_half_written_when_the_judge_breaks(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_responses(*files, config(tmp_path))
    before = (tmp_path / "judged/results.json").read_bytes()
    seen: list[object] = []

    class Breaks(LocalJudge):
        def verdicts(self, pairs: list[Any]) -> list[Any]:
            seen.extend(pairs)
            if len(seen) > 2:
                raise RuntimeError("out of memory")
            return ["A"] * len(pairs)

    monkeypatch.setitem(JUDGES._found, "rule:breaks", Breaks)
    with pytest.raises(RuntimeError):
        judge_responses(*files, config(tmp_path, judge="rule:breaks", batch_size=1))
    assert (tmp_path / "judged/results.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "judged"]


def test_progress_counts_every_pair_and_closes(files: tuple[Path, Path], tmp_path: Path) -> None:
    calls: list[Any] = []

    class Recorder:
        def start(self, label: str, total: int) -> None:
            calls.append((label, total))

        def advance(self, steps: int = 1, **values: float) -> None:
            calls.append(steps)

        def finish(self) -> None:
            calls.append("finish")

        def note(self, line: str) -> None:
            calls.append(line)

    judge_responses(*files, config(tmp_path, batch_size=4), Recorder())
    assert calls == [("judging", 6), 4, 2, "finish"]
