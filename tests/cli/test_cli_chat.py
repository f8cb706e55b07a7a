"""`prlhf chat`: through a pipe, and through a pseudo-terminal as a person uses it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prlhf
from prlhf.adapt.choices import read_choices
from prlhf.config import AdaptConfig, GenerateConfig
from prlhf.conversation import open_conversation
from prlhf.model.personalized import unwrapped
from prlhf.progress import SILENT
from prlhf_cli.main import app
from prlhf_cli.talk import side_by_side, whole_lines

ROOT = Path(__file__).parents[2]
PROMPT = "POST: my boss lost cars.\nTL;DR:"
TYPED = PROMPT.replace("\n", "\\\n")
GREEDY = ("--temperature", "0", "--max-new-tokens", "8", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any]) -> Path:
    """A run whose users write different things."""
    from prlhf.train.run import train

    folder = tmp_path_factory.mktemp("talking") / "run"
    train(make_config(folder, user_lr=0.5, user_text=False))
    return folder


def chat(run: Path, lines: list[str], *options: str) -> Any:
    return CliRunner().invoke(app, ["chat", str(run), *options], input="".join(f"{line}\n" for line in lines))


def test_lines_of_a_pipe_are_answered_as_generate_answers_them(talking: Path) -> None:
    loaded = prlhf.load(talking, device="cpu", precision="fp32")
    said = {user: loaded.generate(PROMPT, user, max_new_tokens=8, temperature=0) for user in ("ann", "bob", "generic")}
    assert len(set(said.values())) == 3
    found = chat(talking, [TYPED, "/user bob", TYPED, "", "/user generic", TYPED], "--user", "ann", *GREEDY)
    assert found.exit_code == 0, found.output
    assert found.stdout == "".join(f"{said[user]}\n" for user in ("ann", "bob", "generic"))
    done = chat(talking, [TYPED, "/quit", TYPED], "--user", "ann", "--json", *GREEDY)
    assert done.stdout.startswith(f"{said['ann']}\n")
    assert json.loads(done.stdout.splitlines()[-1])["questions"] == 1


def test_sampled_answers_are_those_of_generate_and_regenerate_gives_others(talking: Path) -> None:
    config = GenerateConfig(max_new_tokens=12, temperature=1.0, seed=4, device="cpu", precision="fp32")
    talk = open_conversation(talking, "ann", config)
    first = list(talk.ask(PROMPT))
    assert len(first) > 3  # it is streamed
    loaded = prlhf.load(talking, device="cpu", precision="fp32")
    assert "".join(first) == loaded.generate(PROMPT, "ann", max_new_tokens=12, seed=4)
    second, third = ("".join(talk.again()) for _ in range(2))
    assert len({"".join(first), second, third}) == 3


def test_what_was_read_is_not_read_again(talking: Path) -> None:
    config = GenerateConfig(max_new_tokens=12, temperature=0.0, device="cpu", precision="fp32")
    talk = open_conversation(talking, "ann", config)
    read: list[int] = []
    trunk = unwrapped(talk.model.policy.model.lm).base_model
    trunk.register_forward_pre_hook(
        lambda _, args, options: read.append(options["inputs_embeds"].shape[1]), with_kwargs=True
    )
    first = "".join(talk.ask(PROMPT * 3))
    assert max(read) > 30
    read.clear()
    assert "".join(talk.again()) == first
    assert max(read) == 1
    read.clear()
    assert "".join(talk.again("bob")) != first
    assert max(read) > 30


def test_choices_are_what_adapt_reads(talking: Path, tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", "user_id": "old"}))  # no end of line
    lines = [TYPED, "/compare bob", "/choose 2 zed", "/choose 1", "/choose 3", "/choose x"]
    found = chat(talking, lines, "--user", "ann", "--choices", str(file), *GREEDY)
    assert found.exit_code == 0, found.output
    assert "there is no answer 3" in found.stderr
    assert "'x' is not the number of an answer" in found.stderr
    rows = read_choices(AdaptConfig(choices=file), SILENT)
    assert {user: len(of) for user, of in rows.items()} == {"old": 1, "zed": 1, "ann": 1}
    (zed,), (ann,) = rows["zed"], rows["ann"]
    assert zed.prompt == PROMPT
    assert (zed.chosen, zed.rejected) == (ann.rejected, ann.chosen)
    assert "1: ann" in found.stdout
    assert "| 2: bob" in found.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/user an", "user 'an' is unknown to the run; did you mean 'ann'?"),
        ("/nothing", "there is no command /nothing; /help lists them"),
        ("/user", "/user does not take 0 words"),
        ("/regenerate", "nothing was asked yet"),
        ("/choose 1", "there is no answer 1"),
        ("/user 'a", "cannot read"),
        ("word " * 200, "fit"),
    ],
)
def test_a_line_that_is_refused_does_not_end_the_conversation(talking: Path, line: str, said: str) -> None:
    found = chat(talking, [line, TYPED], "--user", "ann", *GREEDY)
    assert found.exit_code == 0
    assert said in found.stderr
    assert found.stdout.strip()


def test_an_unknown_user_ends_the_command(talking: Path) -> None:
    found = chat(talking, [], "--user", "an")
    assert found.exit_code == 2
    assert "user 'an' is unknown to the run" in found.stderr


def test_what_was_said_is_saved_once(talking: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    found = chat(talking, [TYPED, f"/save {file}", f"/save {file}"], "--user", "ann", *GREEDY)
    saved = json.loads(file.read_text())
    assert saved["user"] == "ann"
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert saved["messages"][1]["content"] == found.stdout.removesuffix("\n")
    assert f"{file} exists" in found.stderr


def test_lines_and_columns() -> None:
    from prlhf.conversation import Reply

    assert list(whole_lines(iter(["a\\", "b", "c\\"]))) == ["a\nb", "c"]
    shown = side_by_side([(1, Reply("ann", "one two three")), (2, Reply("bob", "four"))], 35)
    assert shown == [
        "1: ann           | 2: bob",
        "---------------- | ----------------",
        "one two three    | four",
    ]


# ---- through a pseudo-terminal ----


@pytest.fixture
def terminal(talking: Path, tmp_path: Path) -> Iterator[Any]:
    pexpect = pytest.importorskip("pexpect", reason="a pseudo-terminal is driven by pexpect")
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PRLHF_CACHE": str(tmp_path), "TERM": "dumb"}
    words = ["-m", "prlhf_cli.main", "chat", str(talking), "--user", "ann", "--max-new-tokens", "90", "--seed", "1"]
    child = pexpect.spawn(sys.executable, words, env=environ, encoding="utf-8", timeout=120, dimensions=(24, 200))
    child.expect("ann> ")
    yield child
    child.close(force=True)


def test_a_person_at_a_terminal(terminal: Any, tmp_path: Path) -> None:
    terminal.sendline("/user bxb\x1b[D\x1b[D\x7fx")  # edited with arrows and backspace into bxxb: unknown
    terminal.expect("is unknown to the run")
    terminal.sendline("/user bob")
    terminal.expect("bob> ")
    terminal.send("/user bob\x03")  # Ctrl-C clears a line
    terminal.expect("bob> ")
    terminal.sendline("hello")
    terminal.expect("hello\r\n")
    terminal.expect(r"\S{2}")  # the answer began
    terminal.sendintr()
    terminal.expect("stopped")
    terminal.expect("bob> ")
    terminal.send("\x1b[A")  # the arrow up brings the last line back
    terminal.expect("hello")
    terminal.sendline("")
    terminal.expect("bob> ")
    terminal.sendeof()
    terminal.wait()
    assert terminal.exitstatus == 0
    assert "hello" in (tmp_path / "chat_history").read_text()
