"""`--format ollama`: a Modelfile for each user, for `ollama create NAME -f FILE`.

Users in front of the prompt share one model, of the format hf-users, which Ollama converts; a Modelfile has the user's
tokens at the head of its template. Users with gates have an adapter each (`ADAPTER`) on the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from prlhf.errors import PrlhfError
from prlhf.export.gguf import FILE, write_gguf
from prlhf.export.person import Person
from prlhf.export.template import Prefix, template_of
from prlhf.model.base import resolve_name

ASKED, SAID, AGAIN = "first-3f9c", "said-3f9c", "again-3f9c"
Render = Callable[[list[dict[str, str]]], str]


def write_ollama(person: Person, folder: Path) -> None:
    """Write adapter.gguf and a Modelfile into the existing `folder`. Raises PrlhfError as `write_gguf` does."""
    write_gguf(person, folder)
    base = resolve_name(person.base.name)
    where = base.absolute() if isinstance(base, Path) else f"./{Path(base).name}.gguf"
    tokenizer = person.policy.tokenizer
    render = renderer(tokenizer, chat_template=template_of(person.policy))
    text = modelfile(str(where), go_template(render), stop_of(tokenizer, render), f"./{FILE}")
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def renderer(tokenizer: Any, **variables: Any) -> Render:
    """What the tokenizer's template writes of a conversation, up to where the next answer begins."""
    return lambda talk: str(
        tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **variables)
    )


def pieces(render: Render) -> tuple[str, str, str]:
    """What stands before the first question, after each question, and between an answer and the next question.

    Some templates write a space before an answer, which the model writes itself.

    Raises:
        PrlhfError: the template cannot be put together from these.
    """
    talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
    whole = render([*talk, {"role": "user", "content": AGAIN}])
    head, _, rest = whole.partition(ASKED)
    after, _, rest = rest.partition(SAID)
    between, _, tail = rest.partition(AGAIN)
    if after.strip() != tail.strip() or render(talk[:1]) != f"{head}{ASKED}{tail}" or "{{" in whole or '"""' in whole:
        raise PrlhfError("the chat template cannot be written as one of Ollama's", "use --format hf-users, or peft")
    return head, tail, between


def go_template(render: Render) -> str:
    """The template for questions and answers in the language of Ollama's; system messages are left out."""
    head, after, between = pieces(render)
    return (
        f"{head}{{{{ range $i, $_ := .Messages }}}}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if $i }}}}{between}{{{{ end }}}}{{{{ .Content }}}}{after}'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )


def stop_of(tokenizer: Any, render: Render) -> list[str]:
    """The texts that end an answer: EOS, and the line's first mark after an answer if it is another."""
    between = pieces(render)[2].strip()
    ends = [token for token in tokenizer.all_special_tokens if token and between.startswith(token)]
    return list(dict.fromkeys([*ends, tokenizer.eos_token]))


def modelfile(base: str, template: str, stops: list[str], adapter: str = "") -> str:
    """The text of a Modelfile."""
    lines = [f"FROM {base}", *([f"ADAPTER {adapter}"] if adapter else []), f'TEMPLATE """{template}"""']
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"


def write_modelfiles(prefixes: Sequence[Prefix], folder: Path) -> None:
    """Write NAME.Modelfile for each user, on the model with their tokens that is in `folder`/model."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "model"))
    for one in prefixes:
        render = renderer(tokenizer, user=one.user)
        text = modelfile("./model", go_template(render), stop_of(tokenizer, render))
        (folder / f"{one.name}.Modelfile").write_text(text, encoding="utf-8")
