"""Faults of servers. Each is reported in one line, and no answer that arrived is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_rows import MakeConfig
from scripted import Body, Reply, Scripted, error, labels_of, prefers, said, serving, verdict

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.judge.llm.cache import Answer, AnswerCache
from prlhf.judge.llm.client import Pace
from prlhf.judge.llm.replies import retry_after
from prlhf.judge.run import judge_responses

Files = tuple[Path, Path]
longer = prefers(lambda text: len(text.split()))
KEY = "sk-planted-7f3e9a"


def fails_at_first(*faults: Reply) -> object:
    """Each fault once, before an answer."""

    def script(body: Body, number: int) -> Reply:
        return faults[number] if number < len(faults) else longer(body, number)

    return script


PASSING = {
    "429": error(429, "slow down"),
    "500": error(500, "oops"),
    "503": error(503),
    "529": error(529, "overloaded"),
    "408": error(408),
    "no JSON": Reply(raw=b"<html>not JSON</html>"),
    "half a JSON": Reply({"choices": []}, cut=True),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again(two_files: Files, llm: MakeConfig, fault: str) -> None:
    with serving(fails_at_first(PASSING[fault], PASSING[fault])) as server:  # type: ignore[arg-type]
        results = judge_responses(*two_files, llm(server.url))
    assert (results.wins, results.ties, results.losses) == (2, 2, 2)
    assert len(server.requests) == 14


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_does_not_pass_is_one_line(two_files: Files, llm: MakeConfig, fault: str, tmp_path: Path) -> None:
    def script(body: Body, number: int) -> Reply:
        return longer(body, number) if number < 4 else PASSING[fault]

    with serving(script) as server:
        with pytest.raises(
            PrlhfError, match="4 of 12 answers are kept: the same command continues from there"
        ) as caught:
            judge_responses(*two_files, llm(server.url, retries=1, concurrency=2))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "judged").exists()
        server.script, before = longer, len(server.requests)
        judge_responses(*two_files, llm(server.url))
        assert len(server.requests) - before == 8


@pytest.mark.parametrize("header", [{"Retry-After": "1"}, {"retry-after-ms": "1000"}])
def test_retry_after_is_honoured_by_every_call(two_files: Files, llm: MakeConfig, header: dict[str, str]) -> None:
    times: list[float] = []

    def script(body: Body, number: int) -> Reply:
        times.append(time.monotonic())
        return error(429, "slow down", header) if number == 3 else longer(body, number)

    with serving(script) as server:
        judge_responses(*two_files, llm(server.url, concurrency=1))
    assert times[4] - times[3] >= 0.95
    assert len(server.requests) == 13


def test_retry_after_as_a_date_and_as_nonsense() -> None:
    assert 8 < (retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) or 0) <= 10
    assert retry_after({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25


def test_a_pause_holds_back_later_turns() -> None:
    import asyncio

    async def two_turns() -> float:
        pace, began = Pace(None), time.monotonic()
        await pace.turn()
        pace.pause(0.3)
        await pace.turn()
        return time.monotonic() - began

    assert asyncio.run(two_turns()) >= 0.3


def test_a_server_that_never_answers(two_files: Files, llm: MakeConfig) -> None:
    release = threading.Event()

    def script(body: Body, number: int) -> Reply:
        release.wait(10)
        return longer(body, number)

    with serving(script) as server:
        with pytest.raises(PrlhfError, match="did not answer in time; raise --timeout"):
            judge_responses(*two_files, llm(server.url, timeout=0.2, retries=1))
        release.set()


def test_a_port_where_nobody_listens(two_files: Files, llm: MakeConfig) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PrlhfError, match=rf"cannot reach http://127.0.0.1:{port}/v1: .*Connect call failed"):
        judge_responses(*two_files, llm(f"http://127.0.0.1:{port}/v1", retries=0))


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}), None),
        (said(None, refusal="I cannot help with that."), None),
        (said(""), ""),
        (said("The first one is better, I think, but A is fine as well."), "The first one"),
        (said('{"verdict": "K4B"}'), '{"verdict"'),
    ],
    ids=["no choice", "refusal", "empty", "prose", "a code of nobody"],
)
def test_an_answer_without_verdict_is_recorded(
    two_files: Files, llm: MakeConfig, reply: Reply, answer: str | None, tmp_path: Path
) -> None:
    def script(body: Body, number: int) -> Reply:
        return reply if "a0" in body["messages"][-1]["content"] else longer(body, number)

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url))
    assert (results.unparsed["pairs"], results.n_samples) == (3, 3)

    rows = [json.loads(line) for line in (tmp_path / "judged/verdicts.jsonl").read_text().splitlines()]
    lost = [row["answer"] for row in rows if row["verdict"] == "unparsed"]
    assert len(lost) == 6
    assert all(found == answer or (answer and found.startswith(answer)) for found in lost)


# ---- faults that waiting does not help ----


def test_an_unknown_model_is_refused_at_the_first_call_with_the_list(two_files: Files, llm: MakeConfig) -> None:
    def script(body: Body, number: int) -> Reply:
        return error(404, "The model `gpt-5o` does not exist", code="model_not_found")

    with serving(script, models=["gpt-4o", "gpt-4o-mini"]) as server:
        with pytest.raises(PrlhfError, match=r"has no model 'gpt-5o'; did you mean .*'gpt-4o'"):
            judge_responses(*two_files, llm(server.url, judge_model="gpt-5o"))
        assert len(server.requests) == 1
    with (
        serving(script) as server,
        pytest.raises(PrlhfError, match=r"does not have that resource: .*does not exist"),
    ):
        judge_responses(*two_files, llm(server.url, judge_model="gpt-5o"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_once_and_not_shown(
    two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body, number: error(status, f"Incorrect API key provided: {KEY}")) as server:
        with pytest.raises(PrlhfError, match=r"refuses the key: .*\[key\]; set OPENAI_API_KEY") as caught:
            judge_responses(*two_files, llm(server.url))
        assert KEY not in str(caught.value)
        assert len(server.requests) == 1


def test_no_more_quota_is_not_waited_for(two_files: Files, llm: MakeConfig) -> None:
    with serving(lambda body, number: error(429, "quota exceeded", code="insufficient_quota")) as server:
        with pytest.raises(PrlhfError, match=r"answers 429: .*quota exceeded"):
            judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 1


def test_a_request_that_is_too_long(two_files: Files, llm: MakeConfig) -> None:
    with serving(lambda body, number: error(400, "maximum context length is 8 tokens")) as server:
        with pytest.raises(PrlhfError, match=r"answers 400: .*maximum context length"):
            judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 1


def test_a_server_without_tls_at_an_https_address(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server, pytest.raises(PrlhfError, match=r"cannot reach https://.*SSL"):
        judge_responses(*two_files, llm(server.url.replace("http:", "https:")))


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_a_certificate_that_nobody_signed(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    cert = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(listening.accept()[0], server_side=True)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        with pytest.raises(PrlhfError, match=r"cannot reach .*CERTIFICATE_VERIFY_FAILED"):
            judge_responses(*two_files, llm(f"https://127.0.0.1:{port}/v1"))  # once: a second try would hang here


def self_signed(folder: Path) -> Path:
    """A certificate and its key in one file."""
    path = folder / "self.pem"
    line = "openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj /CN=nobody".split()
    subprocess.run([*line, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.mark.parametrize("address", ["", "localhost:8000", "ftp://x", "http://"])
def test_an_address_that_is_none(two_files: Files, llm: MakeConfig, address: str) -> None:
    if address:
        with pytest.raises(PrlhfError, match="is not an address; write http://HOST:PORT/v1"):
            judge_responses(*two_files, llm(address))
    else:
        with pytest.raises(PrlhfError, match=r"no key for api.openai.com; set OPENAI_API_KEY"):
            judge_responses(*two_files, llm(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("parameter", ["temperature", "seed", "response_format"])
def test_what_a_model_does_not_take_is_left_out(two_files: Files, llm: MakeConfig, parameter: str) -> None:
    """Reasoning models refuse a temperature, small servers a seed or a schema."""

    def script(body: Body, number: int) -> Reply:
        if parameter in body:
            return error(400, f"Unsupported parameter: '{parameter}'")
        return always_tie(body)

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url, concurrency=1))
    assert results.ties == 6
    steps = 2 if parameter == "response_format" else 1  # json_object is tried in a schema's place
    assert [parameter in body for body in server.requests].count(True) == steps


def always_tie(body: Body) -> Reply:
    """Read from the question, which always has the codes."""
    return said(re.findall(r"or (\w+) for a tie", body["messages"][-1]["content"])[-1])


def test_a_full_disk_is_one_line(
    two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep = AnswerCache.add

    def add(self: AnswerCache, key: str, answer: Answer) -> None:
        if len(self.known) == 3:
            raise PrlhfError("cannot write answers: No space left on device", "free some space")
        keep(self, key, answer)

    with serving(longer) as server:
        monkeypatch.setattr(AnswerCache, "add", add)
        with pytest.raises(PrlhfError, match="No space left on device; free some space; 3 of 12 answers are kept"):
            judge_responses(*two_files, llm(server.url, concurrency=4))
        monkeypatch.setattr(AnswerCache, "add", keep)
        assert judge_responses(*two_files, llm(server.url)).calls == 9


def test_in_a_notebook_where_a_loop_runs_already(two_files: Files, llm: MakeConfig) -> None:
    async def cell(config: JudgeConfig) -> int:
        return int(judge_responses(*two_files, config).wins)

    with serving(longer) as server:
        assert asyncio.run(cell(llm(server.url))) == 2


# ---- keys ----


def test_a_key_reaches_the_server_and_nothing_else(
    two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path.parent / f"{tmp_path.name}-key"
    file.write_text(KEY + "\n")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(file))
    secret = "pass-9c1d"
    with serving(longer) as server:
        url = server.url.replace("http://", f"http://me:{secret}@")
        judge_responses(*two_files, llm(url))
        assert len(server.keys) == 12
        server.script = lambda body, number: error(500, f"debug: key={KEY} password={secret}")
        with pytest.raises(PrlhfError) as caught:
            judge_responses(*two_files, llm(url, retries=0, seed=2))
    assert KEY not in str(caught.value)
    assert secret not in str(caught.value)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"results.json", "verdicts.jsonl", "report.html"} <= {path.name for path in written}
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path
        assert secret.encode() not in path.read_bytes(), path


def test_a_key_file_that_is_not_there(two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/nowhere/key")
    with pytest.raises(PrlhfError, match="cannot read the key file /nowhere/key that OPENAI_API_KEY_FILE names"):
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1"))


def test_a_key_with_a_line_break_is_not_shown(
    two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    with pytest.raises(PrlhfError, match="the key in OPENAI_API_KEY is not printable ASCII only") as caught:
        judge_responses(*two_files, llm("http://127.0.0.1:1/v1"))
    assert KEY not in str(caught.value)


# ---- Ctrl-C ----


def test_ctrl_c_stops_within_a_second_and_keeps_what_is_done(two_files: Files, tmp_path: Path) -> None:
    with serving_until_released(4) as (server, release):
        line, environment = typed(two_files, server, tmp_path)
        with running(line, environment) as process:
            until(lambda: answers(tmp_path) >= 4 and len(server.requests) >= 6, process)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate(timeout=20)
            took = time.monotonic() - began
        release.set()
        assert process.returncode == 130, printed
        assert "interrupted: 4 of 12 answers are kept: the same command continues from there" in printed
        assert took < 1.0
        done = len(server.requests)
        assert subprocess.run(line, check=False, env=environment, capture_output=True).returncode == 0
        assert len(server.requests) - done == 8
    assert (tmp_path / "judged/report.html").exists()


@contextmanager
def serving_until_released(first: int) -> Iterator[tuple[Scripted, threading.Event]]:
    """A judge that ties; it answers the `first` calls at once, and the others when the event is set."""
    release = threading.Event()

    def script(body: Body, number: int) -> Reply:
        if number >= first:
            release.wait(20)
        return verdict(body, labels_of(body)[2])

    with serving(script) as server:
        yield server, release


def typed(files: Files, server: Scripted, tmp_path: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """The command as a process, and its environment."""
    line = [sys.executable, "-m", "prlhf_cli.main", "judge", *map(str, files), "--judge", "llm:m", *more]
    line += ["--base-url", server.url, "--protocol", "plain", "--out", str(tmp_path / "judged")]
    return line, os.environ | {"PRLHF_CACHE": str(tmp_path / "cache")}


@contextmanager
def running(line: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The command; it is killed if the test fails before its end."""
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: object, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_has_lost_no_answer(two_files: Files, tmp_path: Path) -> None:
    with serving_until_released(5) as (server, release):
        line, environment = typed(two_files, server, tmp_path)
        with running(line, environment) as process:
            until(lambda: answers(tmp_path) >= 5, process)
            process.kill()
        release.set()
        done = len(server.requests)
        assert subprocess.run(line, check=False, env=environment, capture_output=True).returncode == 0
        assert len(server.requests) - done == 7


def answers(tmp_path: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (tmp_path / "cache/judge").glob("*.jsonl"))


# ---- the Batch API ----


class Batches:
    """The provider's side: files, and batches that are done at the third look."""

    def __init__(self, server: Scripted) -> None:
        self.server, self.files, self.batches, self.looks = server, dict[str, bytes](), dict[str, str](), 0
        self.submitted: list[str] = []
        self.metadata: dict[str, object] = {}
        self.never = False
        self.wrong: set[int] = set()  # the n-th requests that get an error
        server.others = self

    def __call__(self, method: str, path: str, content: bytes) -> Reply:

        if method == "POST" and path.endswith("/files"):
            name = f"file-{len(self.files)}"
            self.files[name] = content[content.index(b'{"custom_id"') : content.rindex(b"}") + 1]
            return Reply(
                {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
            )
        if method == "POST" and path.endswith("/batches"):
            name = f"batch-{len(self.batches)}"
            self.batches[name] = json.loads(content)["input_file_id"]
            self.metadata[name] = json.loads(content).get("metadata")
            return Reply(self.batch(name, "in_progress"))
        if path.partition("?")[0].endswith("/batches"):
            return Reply({"data": [self.batch(name, "in_progress") for name in self.batches]})
        if "/batches/" in path and path.rsplit("/", 1)[1] not in self.batches:
            return Reply({"error": {"message": f"no {path}"}}, 404)
        if "/batches/" in path:
            self.looks += 1
            done = self.looks > 2 and not self.never
            return Reply(self.batch(path.rsplit("/", 1)[1], "completed" if done else "in_progress"))
        if "/files/out-" in path:
            lines = self.files[path.split("/files/out-")[1].removesuffix("/content")].decode().splitlines()
            return Reply(raw="\n".join(self.answer(json.loads(line)) for line in lines).encode())
        return Reply({"error": {"message": f"no {path}"}}, 404)

    def batch(self, name: str, status: str) -> dict[str, object]:
        file = self.batches[name]
        fixed = {
            "object": "batch",
            "endpoint": "/v1",
            "completion_window": "24h",
            "created_at": 1,
            "input_file_id": file,
        }
        return fixed | {
            "metadata": self.metadata.get(name),
            "id": name,
            "status": status,
            "output_file_id": f"out-{file}" if status == "completed" else None,
        }

    def answer(self, line: dict[str, object]) -> str:

        self.submitted.append(str(line["custom_id"]))
        if len(self.submitted) in self.wrong:
            response = {"status_code": 400, "body": {"error": {"message": "too long for me"}}}
            return json.dumps({"custom_id": line["custom_id"], "response": response, "error": None})
        body = longer(line["body"], 0).body  # type: ignore[arg-type]
        return json.dumps(
            {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}
        )


def test_batch_submits_waits_and_collects(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("batch: 0.5\nmodels: {m: {input: 1000, output: 10000}}")
    with serving(longer) as server:
        batches = Batches(server)
        results = judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01, prices=prices))
        assert (results.wins, results.ties, results.losses) == (2, 2, 2)
        assert results.cost == pytest.approx(12 * 0.2 / 2)
        assert (len(batches.batches), len(batches.submitted), server.requests) == (1, 12, [])
        judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01))
        assert len(batches.batches) == 1


def test_errors_in_a_batch_are_named_and_only_those_are_asked_again(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server:
        batches = Batches(server)
        batches.wrong = {2, 5}
        with pytest.raises(PrlhfError, match=r"2 requests of the batch have no answer: too long for me; .*10 of 12"):
            judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01))
        batches.wrong = set()
        assert judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01)).wins == 2
        assert len(batches.submitted) == 14


def test_a_batch_that_was_left_is_collected_and_not_paid_twice(two_files: Files, tmp_path: Path) -> None:
    with serving(longer) as server:
        batches = Batches(server)
        batches.never = True
        line, environment = typed(two_files, server, tmp_path, "--batch", "--set", "batch_poll=0.05")
        with running(line, environment) as process:
            until(lambda: batches.looks > 3, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        batches.never = False
        done = subprocess.run(line, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (len(batches.batches), len(batches.submitted)) == (1, 12)


# ---- answers of a kind that was not promised ----


ODD = {
    "half an emoji": (Reply(raw=b'{"choices": [{"message": {"content": "nice \\ud83d"}}]}'), "nice ?"),
    "a list of parts": (Reply({"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]}), "x"),
    "a number": (Reply({"choices": [{"message": {"content": 3}}]}), None),
    "counts as text": (
        Reply(
            {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "12", "completion_tokens": None}}
        ),
        "x",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_answer_is_recorded_and_can_be_read_again(
    two_files: Files, llm: MakeConfig, kind: str, tmp_path: Path
) -> None:
    reply, text = ODD[kind]
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 1, output: 1}}")

    def script(body: Body, number: int) -> Reply:
        return reply if "a0" in body["messages"][-1]["content"] else longer(body, number)

    with serving(script) as server:
        config = llm(server.url, prices=prices)
        first = judge_responses(*two_files, config)
        assert (first.unparsed["pairs"], first.n_samples) == (3, 3)
        asked = len(server.requests)
        assert judge_responses(*two_files, config).wins == first.wins
        assert len(server.requests) == asked
    rows = [json.loads(line) for line in (tmp_path / "judged/verdicts.jsonl").read_text().splitlines()]
    lost = [row for row in rows if row["verdict"] == "unparsed"]
    assert [(row["answer"], row["prompt_tokens"]) for row in lost] == [(text, 0)] * 6
