"""Whole models: plain transformers, llama.cpp, PEFT and a gateway write what `prlhf generate` writes for each user."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from material import write_base
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import prlhf
from prlhf.dataset import Comparison, Prepared, User, prompt_id, write_prepared
from prlhf.errors import PrlhfError
from prlhf.export import hf_users
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
USERS = ["ann", "bob", "Lee, Dan", "eve", "zoë"]
TEXTS = {"ann": "she likes long tables", "eve": "a pilot with boats"}
QUESTIONS = ["my boss lost cars.", "my nurse hid rings."]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def talk(text: str, role: str, chat: bool) -> Any:
    return [{"role": role, "content": text}] if chat else text


def write_data(folder: Path, chat: bool) -> Path:
    """Five users, two of them with a text; plain prompts or conversations."""

    def row(split: str, i: int) -> Comparison:
        user, prompt = USERS[i % 5], talk(f"my boss lost cars {i}. tl;dr", "user", chat)
        good, bad = (talk(text, "assistant", chat) for text in (f" my boss {i}.", " my uncle sold boats. thanks."))
        return Comparison(
            f"{split}-{i}", prompt, good, bad, user, 1 + i % 5, TEXTS.get(user, ""), prompt_id(prompt), True
        )

    users = [User(u, i, TEXTS.get(u, ""), "", 4, 1, True) for i, u in enumerate(USERS, start=1)]
    data = Prepared([row("t", i) for i in range(20)], [row("e", i) for i in range(5)], users, {"dataset": "five"})
    write_prepared(folder, data)
    return folder


@pytest.fixture(scope="module")
def begun_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template, whose tokenizer puts a token in front of texts."""
    folder = write_base(tmp_path_factory.mktemp("begun") / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token, tokenizer.chat_template = "<|pad|>", TEMPLATE
    begin = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", tokenizer.pad_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "conversations"])
def run(
    request: Any, tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, tiny_base: Path, begun_base: Path
) -> Path:
    chat, folder = request.param == "conversations", tmp_path_factory.mktemp("five")
    data = write_data(folder / "data", chat)
    train(make_config(folder / "run", dataset=str(data), model=str(begun_base if chat else tiny_base), user_lr=0.5))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    result = prlhf.export(run, USERS, folder, format="hf-users")
    assert result.compared is not None
    assert result.compared.rows >= 6
    assert result.compared.difference < 1e-4
    assert [one.user for one in result.people] == ["generic", *USERS]
    return folder


def expected(run: Path, tokens: int = 12) -> dict[str, list[str]]:
    loaded = prlhf.load(run, device="cpu", precision="fp32")
    users = ["generic", *USERS]
    found = {u: loaded.generate(QUESTIONS, u, max_new_tokens=tokens, temperature=0) for u in users}
    assert len({tuple(texts) for texts in found.values()}) >= 4  # users differ, or there is nothing to prove
    return {user: list(texts) for user, texts in found.items()}


def asked(tokenizer: Any, question: str, **variables: Any) -> list[int]:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def greedily(lm: Any, tokenizer: Any, asked: list[int]) -> str:
    """What transformers writes, with the model's own settings for what ends it and what is not written."""
    ids = torch.tensor([asked])
    written = lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def test_plain_transformers_writes_for_five_users_what_the_run_writes(run: Path, exported: Path) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    for user, texts in expected(run).items():
        for question, text in zip(QUESTIONS, texts, strict=True):
            assert greedily(lm, tokenizer, asked(tokenizer, question, user=user)) == text, user
    assert asked(tokenizer, "a") == asked(tokenizer, "a", user="generic")
    with pytest.raises(Exception, match="user 'mallory' is not in this model"):
        asked(tokenizer, "a", user="mallory")


def test_llama_cpp_writes_for_five_users_what_the_run_writes(run: Path, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the package xllamacpp")
    pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
    from llama_cpp import greedy
    from llama_cpp import write_base as write_gguf

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    model, texts = write_gguf(lm, tmp_path / "model.gguf"), expected(run)
    pairs = [(user, question) for user in texts for question in QUESTIONS]
    found = greedy(model, None, [asked(tokenizer, question, user=user) for user, question in pairs], 12)
    for (user, question), written in zip(pairs, found, strict=True):
        ids = [token for token, _ in written]
        end = next((i for i, id_ in enumerate(ids) if id_ == tokenizer.eos_token_id), len(ids))
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        assert text == texts[user][QUESTIONS.index(question)], user


def test_a_users_token_is_not_written(exported: Path) -> None:
    """In 10,000 tokens at a high temperature; without the mask its probability is below one in the vocabulary."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    own = {id_ for token, id_ in tokenizer.get_vocab().items() if token.startswith("<|user:")}
    assert len(own) >= 12
    ids = torch.tensor([asked(tokenizer, "a", user="bob")] * 100)
    torch.manual_seed(0)
    lm.generation_config.eos_token_id = None
    written = lm.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, do_sample=True, temperature=5.0, top_k=0
    )[:, ids.shape[1] :]
    assert written.numel() == 10_000
    assert not own & set(written.flatten().tolist())
    with torch.no_grad():
        chances = (lm(input_ids=written).logits / 5).softmax(-1)[..., sorted(own)]
        greedy = lm(input_ids=written).logits.argmax(-1)
    assert float(chances.max()) <= 1 / (len(tokenizer) - len(own))
    assert not own & set(greedy.flatten().tolist())


def test_a_model_that_differs_is_refused_and_nothing_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = hf_users.add_rows
    monkeypatch.setattr(hf_users, "add_rows", lambda lm, ids, vectors: rows(lm, ids, vectors * 0.5))
    with pytest.raises(PrlhfError, match=r"differs from the run by .* nats per token for 'generic'"):
        prlhf.export(run, "ann", tmp_path / "out", format="hf-users")
    assert not list(tmp_path.iterdir())


# ---- PEFT ----


def test_peft_loads_a_user_as_prompt_tuning(run: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    result = prlhf.export(run, ["ann", "bob"], tmp_path / "out", format="peft")
    assert result.compared is not None
    assert result.compared.difference < 1e-4
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    peft_lm = PeftModel.from_pretrained(lm, tmp_path / "out/users/bob")
    assert greedily(peft_lm, tokenizer, asked(tokenizer, QUESTIONS[0])) == expected(run)["bob"][0]


# ---- Ollama ----


def by_ollama(template: str, talk: list[dict[str, str]]) -> str:
    """What Ollama writes with one of our templates: Go's text/template, as far as these use it."""
    head, _, rest = template.partition("{{ range $i, $_ := .Messages }}")
    asked, _, said = rest.partition('{{ else if eq .Role "assistant" }}')
    assert said == "{{ .Content }}{{ end }}{{ end }}"
    between, _, after = asked.removeprefix('{{ if eq .Role "user" }}{{ if $i }}').partition("{{ end }}{{ .Content }}")
    text = head
    for i, message in enumerate(talk):
        user = message["role"] == "user"
        text += (between if i and user else "") + message["content"] + (after if user else "")
    return text


def test_modelfiles_put_users_in_front(run: Path, tmp_path: Path) -> None:
    result = prlhf.export(run, ["ann", "zoë"], tmp_path / "out", format="ollama")
    assert result.compared is not None
    assert result.compared.difference < 1e-4
    files = sorted(path.name for path in (tmp_path / "out").glob("*.Modelfile"))
    assert len(files) == 3
    text = (tmp_path / "out/ann.Modelfile").read_text()
    assert text.startswith('FROM ./model\nTEMPLATE """<|user:ann:0|><|user:ann:1|>')
    template, _, rest = text.partition('TEMPLATE """')[2].partition('"""\n')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "3"},
    ]
    for count in (1, 3):
        expected = tokenizer.apply_chat_template(talk[:count], tokenize=False, add_generation_prompt=True, user="ann")
        assert by_ollama(template, talk[:count]) == expected
    assert 'PARAMETER stop "<|end|>"' in rest


# ---- vLLM ----


class Vllm(BaseHTTPRequestHandler):
    """Answers as vLLM's completions do, by its documented schema: base64 of a saved tensor [tokens, width]."""

    lm: Any
    tokenizer: Any

    def do_POST(self) -> None:
        assert self.path == "/v1/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert "prompt" not in body
        embeds = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True)), weights_only=True)
        assert embeds.dtype in (torch.float32, torch.bfloat16, torch.float16)
        assert embeds.ndim == 2
        assert embeds.shape[1] == self.lm.config.hidden_size
        written = self.lm.generate(inputs_embeds=embeds[None], max_new_tokens=body["max_tokens"], do_sample=False)
        text = self.tokenizer.decode(written[0], skip_special_tokens=True)
        data = json.dumps({"object": "text_completion", "choices": [{"index": 0, "text": text}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def vllm(run: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """An export, and the address of a server that stands in for vLLM with its model."""
    folder = tmp_path / "out"
    assert prlhf.export(run, USERS, folder, format="vllm").compared.difference < 1e-4  # type: ignore[union-attr]
    lm, tokenizer = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Vllm,), {"lm": lm, "tokenizer": tokenizer}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_gateway_of_the_vllm_export_puts_users_in_front(run: Path, vllm: tuple[Path, str]) -> None:
    folder, address = vllm
    code = (
        "import sys, runpy; from http.server import ThreadingHTTPServer as S; before = S.serve_forever\n"
        "S.serve_forever = lambda self: (print(self.server_port, flush=True), before(self))\n"
        f"sys.argv = ['gateway.py', '{address}', '0']; runpy.run_path('{folder / 'gateway.py'}', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as it:
        try:
            assert it.stdout is not None
            port = int(it.stdout.readline())

            def said(user: str, question: str) -> str:
                body = {"user": user, "messages": [{"role": "user", "content": question}], "max_tokens": 12}
                with urlopen(
                    Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
                ) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"])

            for user, texts in expected(run).items():
                assert [said(user, question) for question in QUESTIONS] == texts, user
            with pytest.raises(HTTPError, match="404"):
                said("mallory", "a")
        finally:
            it.kill()


# ---- one model for one person ----


def test_a_person_with_gates_as_a_whole_model(make_config: MakeConfig, begun_base: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", chat=True)
    config = make_config(
        tmp_path / "run", dataset=str(data), model=str(begun_base), user_in="adapter", gates="block", user_text=False
    )
    train(config)
    result = prlhf.export(tmp_path / "run", ["bob", "generic"], tmp_path / "out", format="hf", precision="bf16")
    assert result.compared is not None
    assert 1e-4 < result.compared.difference < 0.1
    prlhf.export(tmp_path / "run", ["bob", "generic"], tmp_path / "out", format="hf")  # replaces them
    texts = expected(tmp_path / "run")
    assert texts["bob"] != texts["generic"]
    for user in ("bob", "generic"):
        folder = tmp_path / "out" / user
        lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert greedily(lm, tokenizer, asked(tokenizer, QUESTIONS[0])) == texts[user][0]
    (tmp_path / "out/bob/mine.txt").write_text("mine")
    with pytest.raises(PrlhfError, match=r"with mine.txt in it, which prlhf did not write"):
        prlhf.export(tmp_path / "run", ["bob", "generic"], tmp_path / "out", format="hf")
    with pytest.raises(
        PrlhfError, match="in the adapter, or nowhere, which hf-users does not hold; use --format peft or"
    ):
        prlhf.export(tmp_path / "run", "bob", tmp_path / "other", format="hf-users")


def test_vectors_and_gates_together_are_one_model_for_each_user(
    make_config: MakeConfig, begun_base: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", chat=True)
    train(make_config(tmp_path / "run", dataset=str(data), model=str(begun_base), user_in="both", user_lr=0.5))
    with pytest.raises(PrlhfError, match="each of them is another model; export one --user at a time"):
        prlhf.export(tmp_path / "run", ["ann", "bob"], tmp_path / "out", format="hf-users")
    result = prlhf.export(tmp_path / "run", "ann", tmp_path / "out", format="hf-users")
    assert [one.user for one in result.people] == ["ann"]
    assert result.compared is not None
    assert result.compared.difference < 1e-4
