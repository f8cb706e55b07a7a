"""A session of questions: its answers are choices on disk, and it ends as `adapt` of that file would."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prlhf.adapt.ask import Answer, PairQuestion, ask_user, simulated
from prlhf.adapt.run import adapt_run
from prlhf.config import AdaptConfig
from prlhf.errors import Interrupted, PrlhfError
from prlhf.model.checkpoint import load_policy

WHAT = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]


def write_pool(path: Path, count: int = 12) -> Path:
    rows = [
        {
            "prompt": f"POST: my boss found {WHAT[i % 8]}.\nTL;DR:",
            "chosen": f" {WHAT[i % 8]}." if i % 2 else f" my boss found {WHAT[i % 8]}. my uncle lost {WHAT[i // 8]}.",
            "rejected": f" my boss found {WHAT[i % 8]}. my uncle lost {WHAT[i // 8]}." if i % 2 else f" {WHAT[i % 8]}.",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


@pytest.fixture
def ask(run: Path, tmp_path: Path) -> Callable[..., Any]:
    write_pool(tmp_path / "pool.jsonl")

    def call(answer: Any, **settings: Any) -> dict[str, Any]:
        given = {"user": "new", "pool": tmp_path / "pool.jsonl", "answers": tmp_path / "a.jsonl", "sure": 0.0}
        return ask_user(run, AdaptConfig(ask=True, device="cpu", **given | settings), answer)

    return call


def saying(*answers: str) -> tuple[Callable[[PairQuestion], Answer], list[PairQuestion]]:
    """Somebody who gives these answers and then stops, and the questions that were asked."""
    seen: list[PairQuestion] = []
    left: Iterator[Any] = iter(answers)

    def answer(question: PairQuestion) -> Answer:
        seen.append(question)
        reply: Answer = next(left, "stop")
        return reply

    return answer, seen


def prefer_long(_prompt: Any, left: Any, right: Any) -> float:
    return float(len(left) > len(right))


def rows_of(run: Path) -> Any:
    """The gates of all users of a run, less 1."""
    return load_policy(run, "cpu").model.users.gates.offsets.weight.detach()  # type: ignore[union-attr,operator]


def kept(tmp_path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {row["user_id"] for row in rows} <= {"new"}
    return [(row["chosen"], row["rejected"]) for row in rows]


def test_the_user_is_as_adapt_would_learn_them_and_nobody_else_changes(ask: Any, run: Path, tmp_path: Path) -> None:
    before, other = rows_of(run), Path(shutil.copytree(run, tmp_path / "other"))
    trained = (run / "model/user_model.safetensors").read_bytes()
    found = ask(simulated(prefer_long))
    assert (found["asked"], found["pairs"], found["ended"]) == (12, 12, "no questions left")  # the repeat is one pair
    assert all(len(chosen) > len(rejected) for chosen, rejected in kept(tmp_path))
    again = adapt_run(other, AdaptConfig(choices=tmp_path / "a.jsonl", user="new", device="cpu"))
    assert rows_of(run).numpy().tobytes() == rows_of(other).numpy().tobytes()
    assert found["users"] == again["users"]
    assert rows_of(run)[:3].numpy().tobytes() == before.numpy().tobytes()
    assert (run / "model/user_model.safetensors").read_bytes() == trained
    assert len(rows_of(run)) == 4
    assert load_policy(run, "cpu").index_of() == {"ann": 1, "bob": 2, "cat": 3, "new": 4}
    assert found["agrees"] >= max(found["agreed_before"], 0.75)


def test_questions_tell_less_and_less(ask: Any) -> None:
    answer, seen = saying(*["left"] * 12)
    ask(answer)
    assert seen[0].uncertainty == pytest.approx(1)
    assert seen[-1].uncertainty < seen[0].uncertainty
    assert seen[-1].information < seen[0].information
    assert [question.number for question in seen] == list(range(1, 13))
    assert len({question.left for question in seen} | {question.right for question in seen}) > 12


def test_which_response_is_on_the_left(ask: Any) -> None:
    """By the seed: the first question is the same."""
    sides = set()
    for seed in range(6):
        answer, seen = saying("skip")
        ask(answer, seed=seed)
        sides.add(seen[0].left)
    assert sides == {seen[0].left, seen[0].right}


def test_it_ends_when_sure(ask: Any) -> None:
    answer, seen = saying(*["left"] * 12)
    ask(answer)
    told = sorted(question.information for question in seen)
    sure, _ = saying(*["left"] * 12)
    found = ask(sure, user="other", sure=told[5])
    assert found["ended"] == "sure"
    assert 0 < found["asked"] < 12
    assert found["information"] < told[5]


def test_skip_tie_and_undo(ask: Any, tmp_path: Path) -> None:
    answer, seen = saying("skip", "undo", "tie", "undo", "left", "right", "undo", "skip", "undo", "undo", "undo")
    ask(answer)
    assert (tmp_path / "a.jsonl").exists() is False  # all was taken back
    first, second = seen[0].prompt, seen[1].prompt
    pairs = [question.prompt for question in seen]
    assert pairs[2] == first  # the skip was taken back
    assert second != first
    assert pairs[4] == first
    assert (seen[0].undo, seen[1].undo) == (False, True)
    assert pairs[5:8] != [first] * 3
    tie, asked = saying("tie", "left")
    ask(tie)
    (a, b), (c, d), last = kept(tmp_path)
    assert {a, b} == {asked[0].left, asked[0].right}
    assert (a, b) == (d, c)
    assert last == (asked[1].left, asked[1].right)


def test_a_second_session_continues(ask: Any, run: Path, tmp_path: Path) -> None:
    """After Ctrl-C, too: answers stay, and what was answered is not asked again."""
    whole, questions = saying(*["left"] * 6)
    ask(whole, user="once", answers=tmp_path / "once.jsonl")
    first, begun = saying("left", "left")

    def stopped(question: PairQuestion) -> Answer:
        if len(begun) == 2:
            raise KeyboardInterrupt
        return first(question)

    before = rows_of(run)
    with pytest.raises(Interrupted, match="are kept in"):
        ask(stopped)
    assert rows_of(run).numpy().tobytes() == before.numpy().tobytes()
    assert len(kept(tmp_path)) == 2
    second, rest = saying(*["left"] * 4)
    found = ask(second)
    assert found["users"][0]["choices"] == 6
    assert [each.prompt for each in begun + rest[:4]] == [each.prompt for each in questions[:6]]
    assert [each.left for each in begun + rest[:4]] == [each.left for each in questions[:6]]
    third, late = saying("left")
    assert ask(third)["choices"] == 1  # older choices are in the run now
    assert late[0].prompt not in {each.prompt for each in questions[:6]} or late[0].left != questions[0].left
    answered, _ = saying()
    assert ask(answered)["choices"] == 0


def test_a_last_line_of_somebody_elses_is_not_cut_off(tmp_path: Path) -> None:
    from prlhf.adapt.answers import open_answers

    path = tmp_path / "notes.jsonl"
    path.write_text('{"note": 1}\nbuy milk')
    with pytest.raises(PrlhfError, match=r"the last line of .*notes\.jsonl is not JSON; give another file"):
        open_answers(path).__enter__()
    assert path.read_text() == '{"note": 1}\nbuy milk'


def test_a_line_that_was_cut_off(ask: Any, tmp_path: Path) -> None:
    answer, _ = saying("left", "left", "left")
    ask(answer)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text[:-30])
    again, _ = saying("left")
    ask(again)
    assert len(kept(tmp_path)) == 3
    (tmp_path / "a.jsonl").write_text(text.rstrip("\n"))  # whole, but for its end
    ask(saying("left")[0])
    assert len(kept(tmp_path)) == 4


def test_others_in_the_file_stay(ask: Any, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "user_id": "somebody"}) + "\n"
    (tmp_path / "a.jsonl").write_text(line)
    found = ask(saying("left", "undo", "right")[0])
    assert (tmp_path / "a.jsonl").read_text().startswith(line)
    assert [user["user_id"] for user in found["users"]] == ["new"]
    assert found["users"][0]["choices"] == 1


def test_nothing_said_changes_nothing(ask: Any, run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = ask(saying("skip", "skip")[0])
    assert (found["users"], found["asked"], found["ended"]) == ([], 0, "stopped")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert not (tmp_path / "a.jsonl").exists()


def test_the_run_writes_its_pool(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("POST: my boss found cars.\nPOST: my nurse lost doors.\n")
    settings: dict[str, Any] = {"pool": None, "prompts": tmp_path / "prompts.txt", "max_new_tokens": 6, "candidates": 3}
    answer, seen = saying("left", "right")
    found = ask(answer, **settings)
    pool = tmp_path / "a.pool.jsonl"
    pairs = [json.loads(line) for line in pool.read_text().splitlines()]
    assert 2 < found["pairs"] == len(pairs) <= 2 * 3  # of three responses to each prompt
    assert all(len(pair["chosen"].split()) <= 6 for pair in pairs)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert {question.prompt for question in seen} <= {pair["prompt"] for pair in pairs}
    text = pool.read_bytes()
    ask(saying("left")[0], **settings, seed=1)  # read, and not written again
    assert pool.read_bytes() == text
    ask(saying("left")[0], **settings | {"pool": tmp_path / "second.jsonl"}, seed=1)
    assert (tmp_path / "second.jsonl").read_bytes() != text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"user": None}, "--user"),
        ({"pool": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"answers": Path("a.csv")}, "NAME.jsonl"),
        ({"answers": Path("tests")}, "NAME.jsonl"),
    ],
)
def test_what_is_refused_before_a_question(ask: Any, settings: dict[str, Any], said: str) -> None:
    answer, seen = saying("left")
    with pytest.raises(PrlhfError, match=said):
        ask(answer, **settings)
    assert not seen


def test_out_is_checked_first(ask: Any, run: Path, tmp_path: Path) -> None:
    answer, seen = saying("left")
    with pytest.raises(PrlhfError, match="already holds"):
        ask(answer, out=run.parent / "run")
    assert not seen
    before = rows_of(run)
    assert ask(answer, out=tmp_path / "beside")["run"] == str(tmp_path / "beside")
    assert len(rows_of(tmp_path / "beside")) == 4
    assert rows_of(run).numpy().tobytes() == before.numpy().tobytes()


def test_one_session_per_file(ask: Any, tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PrlhfError, match="another process"):
            ask(saying("left")[0])


def test_an_answer_that_is_none(ask: Any) -> None:
    with pytest.raises(PrlhfError, match="did you mean 'left'"):
        ask(saying("lefft")[0])
