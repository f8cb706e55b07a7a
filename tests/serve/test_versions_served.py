"""What a server says of a user, former versions written for, and a rollback that is served without a restart."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running_server import PROMPT, Running, serving

import prlhf
from prlhf.adapt.run import adapt_run
from prlhf.config import AdaptConfig

LONGER = " my boss lost cars. my pilot hid vases. boats {}."


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


def learn(run: Path, user: str, count: int) -> None:
    """Learn somebody from so many choices of the longer response."""
    rows = [{"prompt": PROMPT, "chosen": LONGER.format(i), "rejected": f" {i}.", "user_id": user} for i in range(count)]
    file = run.parent / "choices.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapt_run(run, AdaptConfig(choices=file, device="cpu"))


def write(running: Running, user: str, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 1, "logprobs": 0, "user": user} | fields
    return httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)


def score(running: Running, user: str, **fields: Any) -> float:
    """The log-prob of the first token, which differs for any two rows."""
    return float(write(running, user, **fields).json()["choices"][0]["logprobs"]["token_logprobs"][0])


def test_former_versions_are_written_for_and_put_back(run: Path) -> None:
    with serving(run, adapt_every=0) as running:
        url = f"{running.url}/v1/users"
        generic, trained = score(running, "generic"), score(running, "bob")
        scores = {}
        for number, count in ((1, 2), (2, 5)):
            for user in ("dan", "bob"):
                learn(run, user, count)
                scores[user, number] = score(running, user)
        assert len({generic, trained, *scores.values()}) == 6
        for (user, number), value in scores.items():
            assert score(running, user, prlhf_version=number) == value
        assert score(running, "dan", prlhf_version=0) == generic
        assert score(running, "bob", prlhf_version=0) == trained
        assert write(running, "dan", prlhf_version=0).headers["x-prlhf-served-as"] == "generic"
        for user, number in (("dan", 3), ("ann", 1), ("eve", 1), ("generic", 0)):
            answer = write(running, user, prlhf_version=number)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "version_not_found")

        said = httpx.get(f"{url}/dan").json()
        assert said | {"versions": []} == {
            "id": "dan", "object": "user", "known": True, "choices": 0, "learned": 0, "learning": False, "version": 2,
            "versions": [],
        }  # fmt: skip
        assert [(one["version"], one["choices"]) for one in said["versions"]] == [(1, 2), (2, 5)]
        assert 1 > said["versions"][0]["uncertainty"] > said["versions"][1]["uncertainty"] > 0

        undone = httpx.post(f"{url}/rollback", json={"user": "dan"}, timeout=60)
        assert (undone.status_code, undone.json()["version"]) == (200, 1)
        assert undone.json() == httpx.get(f"{url}/dan").json()
        assert score(running, "dan") == scores["dan", 1]
        assert score(running, "bob") == scores["bob", 2]  # and nobody else
        httpx.post(f"{url}/rollback", json={"user": "bob", "version": 0}, timeout=60)
        assert score(running, "bob") == trained
        httpx.post(f"{url}/rollback", json={"model": "tiny:dan"}, timeout=60)
        assert httpx.get(f"{url}/dan").json()["known"] is False
        assert score(running, "dan") == generic


def test_what_was_undone_is_not_learned_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prlhf.serve.learning.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    with serving(run, adapt_every=2) as running:

        def choose(*numbers: int) -> None:
            for number in numbers:
                body = {"user": "dan", "prompt": PROMPT, "chosen": LONGER.format(number), "rejected": f" {number}."}
                assert httpx.post(f"{running.url}/v1/feedback", json=body, timeout=60).status_code == 200
            learned = numbers[-1] // 2 + 1
            running.until(lambda: running.service.keeper.learning.learned == learned)

        def said() -> dict[str, Any]:
            return dict(httpx.get(f"{running.url}/v1/users/dan").json())

        choose(0, 1)
        assert said()["learning"] is False
        choose(2, 3)
        assert (said()["choices"], said()["learned"], said()["version"]) == (4, 4, 2)
        httpx.post(f"{running.url}/v1/users/rollback", json={"user": "dan"}, timeout=60)
        assert (said()["choices"], said()["learned"], said()["version"]) == (4, 2, 1)
        choose(4, 5)
        assert [(one["version"], one["choices"]) for one in said()["versions"]] == [(1, 2), (2, 4)]
        assert (said()["choices"], said()["learned"]) == (6, 4)
        prlhf.roll_back(run, "dan", 0)  # by the command line, beside the server
        assert (said()["known"], said()["choices"], said()["learned"]) == (False, 6, 0)
        choose(6, 7)
        assert [(one["version"], one["choices"]) for one in said()["versions"]] == [(1, 2)]
    assert prlhf.feedback(run, out=run / "all.jsonl").choices == 8


def test_whose_versions(run: Path, tmp_path: Path) -> None:
    import hashlib

    keys = tmp_path / "keys.txt"
    keys.write_text(f"{hashlib.sha256(b'of-dan').hexdigest()} dan\n")
    learn(run, "dan", 2)
    learn(run, "eve", 2)
    with serving(run, adapt_every=0, keys=keys) as running:
        url, headers = f"{running.url}/v1/users", {"authorization": "Bearer of-dan"}
        assert httpx.get(f"{url}/dan").status_code == 401
        assert httpx.get(f"{url}/eve", headers=headers).status_code == 403
        assert httpx.post(f"{url}/rollback", json={"user": "eve"}, headers=headers).status_code == 403
        assert httpx.post(f"{url}/rollback", json={}).status_code == 401
        assert httpx.get(f"{url}/dan", headers=headers).json()["version"] == 1
        assert httpx.post(f"{url}/rollback", json={}, headers=headers, timeout=60).json()["known"] is False
    assert [user.user_id for user in prlhf.users(run).adapted] == ["eve"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "say who is to be as before"),
        ({"user": "nobody"}, 404, "the user 'nobody' is not known"),
        ({"user": "ann"}, 400, "'ann' was not adapted"),
        ({"user": "ann", "version": -1}, 400, "version"),
    ],
)
def test_a_rollback_that_is_refused(tiny: Running, body: dict[str, Any], status: int, said: str) -> None:
    answer = httpx.post(f"{tiny.url}/v1/users/rollback", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_no_page_from_elsewhere_can_undo(tiny: Running) -> None:
    """A form of another page cannot send JSON."""
    for headers in ({}, {"content-type": "text/plain"}):
        answer = httpx.post(f"{tiny.url}/v1/users/rollback", content=b'{"user": "ann"}', headers=headers)
        assert answer.status_code == 400
        assert "send a JSON object" in answer.json()["error"]["message"]
    assert httpx.get(f"{tiny.url}/v1/users/a%2Fb").json()["id"] == "a/b"
