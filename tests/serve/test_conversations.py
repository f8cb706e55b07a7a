"""A run that was trained on conversations: turns, plain prompts, the template's variables, choices. Further limits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from running_server import PROMPT, serving

import prlhf
from prlhf.choice_store import FILE
from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError
from prlhf.serve.run import serve

TEMPLATE = "{{ more }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}a:{% endif %}"
TALK: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "who hid lamps?"},
    {"role": "assistant", "content": "my boss."},
    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "cars?"}]},
]
WRITTEN = [*TALK[:3], {"role": "user", "content": "and cars?"}]


@pytest.fixture(scope="module")
def talking(trained: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with individual users, on a base with a chat template, as if it had been trained on conversations."""
    folder = tmp_path_factory.mktemp("talking")
    base, run = (Path(shutil.copytree(old, folder / name)) for old, name in ((tiny_base, "base"), (trained, "run")))
    (base / "chat_template.jinja").write_text(TEMPLATE)
    about = json.loads((run / "model/prlhf.json").read_text()) | {"conversational": True, "base": str(base)}
    (run / "model/prlhf.json").write_text(json.dumps(about))
    return run


def test_a_conversation_and_a_plain_prompt(talking: Path) -> None:
    loaded = prlhf.load(talking, device="cpu")
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    with serving(talking, adapt_every=0) as running:
        client = running.client()
        found = client.chat.completions.create(model="tiny", messages=TALK, user="bob", **how)
        bob, cat = (loaded.generate(WRITTEN, user, temperature=0, max_new_tokens=12) for user in ("bob", "cat"))
        assert found.choices[0].message.content == bob != cat
        text = client.completions.create(model="tiny", prompt=PROMPT, user="bob", **how)
        assert text.choices[0].text == loaded.generate(PROMPT, "bob", temperature=0, max_new_tokens=12)
        body = {"prompt": TALK, "chosen": "yes.", "rejected": "no.", "user": "eve"}
        client.post("/feedback", body=body, cast_to=object)
        client.post("/feedback", body=body | {"prompt": "who?"}, cast_to=object)
    assert prlhf.feedback(talking, out=talking / "choices.jsonl").choices == 2
    first, second = map(json.loads, (talking / "choices.jsonl").read_text().splitlines())
    assert first["prompt"] == WRITTEN
    assert first["chosen"] == [{"role": "assistant", "content": "yes."}]
    assert second["prompt"] == [{"role": "user", "content": "who?"}]
    longer = prlhf.adapt(talking, talking / "choices.jsonl", out=talking.parent / "with-eve", device="cpu")
    assert [user.user_id for user in longer.users] == ["eve"]
    assert not list((talking.parent / "with-eve").glob(f"{FILE}*"))  # choices stay with the run that was served


def test_variables_of_the_template(talking: Path) -> None:
    def tokens(**settings: Any) -> int:
        with serving(talking, adapt_every=0, **settings) as running:
            found = running.client().chat.completions.create(model="tiny", messages=TALK, max_tokens=1)
        assert found.usage is not None
        return found.usage.prompt_tokens

    assert tokens(template_options={"more": "some words before"}) > tokens() + 2


def test_the_longest_prompt_and_the_place_of_choices(trained: Path, tmp_path: Path, alone: Callable[..., str]) -> None:
    others = shutil.ignore_patterns(f"{FILE}*")  # choices that other tests left beside the run
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=others))
    kept = tmp_path / "kept.sqlite"
    with serving(run, max_prompt_tokens=30, feedback=kept, adapt_every=0) as running:
        client = running.client()
        asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 16, "user": "bob"}
        assert client.completions.create(prompt=PROMPT, **asked).choices[0].text == alone("bob")
        with pytest.raises(openai.BadRequestError, match="the prompt has more than 30 tokens") as caught:
            client.completions.create(prompt=PROMPT * 3, **asked)
        assert caught.value.code == "context_length_exceeded"
        body = {"prompt": PROMPT, "chosen": "a", "rejected": "b", "user": "bob"}
        client.post("/feedback", body=body, cast_to=object)
    assert not (run / FILE).exists()
    assert prlhf.feedback(kept, out=tmp_path / "out.jsonl").choices == 1
    with pytest.raises(PrlhfError, match="is a model without its run, which has no place for choices"):
        serve(run / "model", ServeConfig(port=0, device="cpu"))
