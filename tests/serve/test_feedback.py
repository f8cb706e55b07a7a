"""Choices: what was accepted survives a kill, a user is learned from them and then served, and they can be exported."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running_server import PROMPT, Running, serving

import prlhf
from prlhf.adapt.forget import forget_user
from prlhf.choice_store import FILE, MIGRATIONS, ChoiceStore
from prlhf.errors import PrlhfError

CHOICE: dict[str, Any] = {
    "prompt": PROMPT,
    "user": "dan",
    "chosen": " my boss lost cars. my pilot hid vases.",
    "rejected": " cars.",
}


def choose(url: str, number: int = 0, **fields: Any) -> httpx.Response:
    body = CHOICE | {"chosen": f" my boss lost cars. boats {number}."} | fields
    return httpx.post(f"{url}/v1/feedback", json=body, timeout=60)


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


@pytest.fixture
def collecting(run: Path) -> Iterator[Running]:
    with serving(run, adapt_every=0) as running:
        yield running


def test_choices_are_kept_and_exported_as_custom_data(collecting: Running, run: Path, tmp_path: Path) -> None:
    answer = choose(collecting.url).json()
    assert answer == {"id": 1, "object": "feedback", "user": "dan", "choices": 1, "learned": 0}
    message = [{"role": "user", "content": PROMPT}]
    assert choose(collecting.url, 1, prompt=message, user=None, model="tiny:ann").json()["user"] == "ann"
    assert choose(collecting.url, 2, user=None, safety_identifier="dan").json()["choices"] == 2
    found = prlhf.feedback(run, out=tmp_path / "choices.jsonl")
    assert found.choices == 3
    rows = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == ["dan", "ann", "dan"]
    assert all(row["prompt"] == PROMPT for row in rows)
    prepared = prlhf.prepare(tmp_path / "choices.jsonl", out=tmp_path / "data", eval_fraction=0.0)
    assert prepared.kept["train"] == 3
    assert prlhf.feedback(run, out=tmp_path / "of-ann.jsonl", user="ann").choices == 1
    with pytest.raises(PrlhfError, match="has no choices of 'eve'"):
        prlhf.feedback(run, out=tmp_path / "none.jsonl", user="eve")
    assert not (tmp_path / "none.jsonl").exists()
    assert b"boss" not in b"".join(path.read_bytes() for path in (run / "model").glob("adapted*"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"user": None}, "say whose choice it is"),
        ({"user": "generic"}, "say whose choice it is"),
        ({"rejected": " my boss lost cars. boats 0."}, "chosen and rejected are the same"),
        ({"rejected": None}, "rejected"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "trained on plain prompts"),
        ({"chosen": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_choice_that_is_refused(collecting: Running, fields: dict[str, Any], said: str) -> None:
    body = json.dumps(CHOICE | {"chosen": " my boss lost cars. boats 0."} | fields)
    answer = httpx.post(f"{collecting.url}/v1/feedback", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert collecting.service.keeper.store.choices() == []


def test_a_user_is_learned_and_served_without_a_restart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in a thread, to save the start of a process."""
    monkeypatch.setattr("prlhf.serve.learning.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    learn_and_serve(run)


@pytest.mark.slow
def test_a_user_is_learned_in_another_process(run: Path) -> None:
    learn_and_serve(run)


def learn_and_serve(run: Path) -> None:
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16, "user": "dan"}
    with serving(run, adapt_every=3) as running:

        def ask() -> httpx.Response:
            return httpx.post(f"{running.url}/v1/completions", json=asked, timeout=60)

        before = ask()
        assert before.headers["x-prlhf-served-as"] == "generic"
        answers = [choose(running.url, number).json() for number in range(3)]
        assert [answer["choices"] for answer in answers] == [1, 2, 3]
        learning = running.service.keeper.learning
        running.until(lambda: learning.learned == 1)
        after = ask()
        assert after.headers["x-prlhf-served-as"] == "user"
        assert choose(running.url, 9).json()["learned"] == 3
        assert "prlhf_users_learned 1.0" in httpx.get(f"{running.url}/metrics").text
    loaded = prlhf.load(run, device="cpu")
    assert after.json()["choices"][0]["text"] == loaded.generate(PROMPT, "dan", temperature=0, max_new_tokens=16)
    assert [user.user_id for user in prlhf.users(run).adapted] == ["dan"]
    with serving(run, adapt_every=1) as running:  # what an earlier server left is learned at the start
        running.until(lambda: running.service.keeper.learning.learned == 1)
        assert running.service.keeper.store.counts("dan") == (4, 4)


def test_a_failure_is_not_tried_again_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prlhf.serve.learning.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    with serving(run, adapt_every=1) as running:
        choose(running.url, prompt="word " * 999)
        running.until(lambda: running.service.keeper.learning.failed == 1)
        assert running.service.keeper.store.counts("dan") == (1, 0)
        assert running.service.keeper.store.due(1) == []


def test_a_forgotten_user_leaves_the_choices_too(collecting: Running, run: Path) -> None:
    for user in ("ann", "bob"):
        choose(collecting.url, user=user, rejected=f" the secret of {user}.")
    forget_user(run, "ann")
    files = b"".join(path.read_bytes() for path in run.glob(f"{FILE}*"))
    assert b"secret of bob" in files
    assert b"secret of ann" not in files
    assert prlhf.feedback(run, user="bob").choices == 1
    assert collecting.service.keeper.store.choices() == []
    assert choose(collecting.url).json()["id"] == 3  # numbers are not given twice


def test_what_was_answered_survives_a_kill(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    line = [sys.executable, "-m", "prlhf_cli.main", "serve", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen([*line, "--adapt-every", "0"], stderr=subprocess.PIPE, text=True)
    kept: list[int] = []
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "/v1; Ctrl-C ends it" in line)
        url = next(word for word in said.split() if word.startswith("http")).rstrip(";").removesuffix("/v1")
        killer = threading.Timer(1.0, process.send_signal, [signal.SIGKILL])
        killer.start()
        try:
            while True:
                kept.append(choose(url, len(kept)).json()["id"])
        except httpx.TransportError:
            pass
    finally:
        process.kill()
        process.wait()
    store = ChoiceStore(run / FILE)
    assert kept
    assert set(kept) <= {choice.number for choice in store.choices()}
    with sqlite3.connect(run / FILE) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ---- the file ----


def test_many_writers_wait_for_each_other(tmp_path: Path) -> None:
    def write(who: int) -> None:
        store = ChoiceStore(tmp_path / FILE)
        for number in range(20):
            store.add(f"user {who}", PROMPT, f"a {number}", "b")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    store = ChoiceStore(tmp_path / FILE)
    assert len({choice.number for choice in store.choices()}) == 160
    assert store.due(21) == []
    assert len(store.due(20)) == 8


def test_a_database_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE visits (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(PrlhfError, match=r"history\.sqlite is a database of something else; choose another file"):
        ChoiceStore(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["history.sqlite"]


def test_the_version_of_the_file(tmp_path: Path) -> None:
    ChoiceStore(tmp_path / FILE).add("ann", PROMPT, "a", "b")
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(PrlhfError, match="was written by a later version of prlhf; update prlhf"):
        ChoiceStore(tmp_path / FILE)
    (tmp_path / "text.sqlite").write_text("not a database, but a text that is long enough for its header" * 50)
    with pytest.raises(PrlhfError, match="cannot use"):
        ChoiceStore(tmp_path / "text.sqlite")
    with pytest.raises(PrlhfError, match="there is no feedback at"):
        ChoiceStore(tmp_path / "none", make=False)
    assert not (tmp_path / "none").exists()
