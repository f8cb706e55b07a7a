"""A gateway in front of vLLM: chat completions in which `user` says who asks. An example to start from.

    vllm serve model --enable-prompt-embeds
    python gateway.py http://localhost:8000 9000

It stands in the folder that `prlhf export --format vllm` wrote, and needs torch, transformers and safetensors. Clients
send text; embeddings are made here alone. Who may speak as whom is for the server in front of it to check.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

HERE = Path(__file__).parent
TAKEN = ("max_tokens", "temperature", "top_p", "n", "seed", "stop")  # of a request, besides user and messages


class Gateway(BaseHTTPRequestHandler):
    """Answers POST with `{"user": …, "messages": […]}`. Class attributes are set by `run_gateway`."""

    vllm: str
    users: dict[str, dict[str, Any]]
    words: torch.Tensor
    tokenizer: Any

    def do_POST(self) -> None:
        """Send the prompt as embeddings to vLLM, and its answer back as a chat completion."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = asked.get("user", "generic")
        if user not in self.users:
            self.answer(404, {"error": {"message": f"user '{user}' is unknown"}})
            return
        body = {name: asked[name] for name in TAKEN if name in asked}
        body |= {"model": "model", "prompt_embeds": as_base64(self.embeds(user, asked["messages"]))}
        request = Request(
            f"{self.vllm}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request) as reply:
            said = json.load(reply)
        for choice in said["choices"]:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        self.answer(200, said | {"object": "chat.completion"})

    def embeds(self, user: str, messages: list[dict[str, str]]) -> torch.Tensor:
        """The whole prompt [tokens, width]: the user's vectors, and the embeddings of what the template writes."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if self.users[user]["begun"] and ids[:1] == [self.tokenizer.bos_token_id]:
            ids = ids[1:]
        vectors = load_file(HERE / self.users[user]["file"])["vectors"]
        return torch.cat([vectors, self.words[ids]])

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Send `body` as JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def as_base64(tensor: torch.Tensor) -> str:
    """A tensor as vLLM takes it."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def run_gateway(vllm: str, port: str) -> None:
    """Serve on the loopback address until stopped."""
    Gateway.vllm = vllm
    Gateway.users = json.loads((HERE / "users.json").read_text(encoding="utf-8"))
    Gateway.words = load_file(HERE / "words.safetensors")["words"]
    Gateway.tokenizer = AutoTokenizer.from_pretrained(str(HERE / "model"))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Gateway).serve_forever()


if __name__ == "__main__":
    run_gateway(*sys.argv[1:])
