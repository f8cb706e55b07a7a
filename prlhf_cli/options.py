"""The options of a command: one for each key of its stages, and those that are its own.

    @options.of("train", "cluster", show=show_run)
    def command(typed: options.Typed, resume: Annotated[bool, typer.Option(help="…")] = False) -> Run:

What a key's option is called, takes and says stands in options.json, which `make docs` writes from the declarations in
`prlhf.config` and a test compares with them: reading it takes a hundredth of the time of importing pydantic.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand
from typer.main import get_command

from prlhf_cli import show
from prlhf_cli.usage import override

if TYPE_CHECKING:
    from prlhf.progress import Progress

FILE = Path(__file__).with_name("options.json")
KINDS: dict[str, Any] = {
    "switch": bool,
    "int": int,
    "float": float,
    "text": str,
    "name": str,
    "path": Path,
    "entries": list[str],
}
OWN = "Command"  # the heading of options that belong to no key


@cache
def declared() -> dict[str, dict[str, dict[str, Any]]]:
    """What options.json says: stage -> key -> its option."""
    return json.loads(FILE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Typed:
    """What was typed besides a command's own options. `settings`: by stage, those of --set and of the options."""

    recipe: str | None
    settings: Mapping[str, dict[str, Any]]
    progress: Progress

    def sections(self) -> dict[str, dict[str, Any]]:
        """The sections of the recipe."""
        from prlhf.recipes import load_recipe

        return load_recipe(self.recipe)


@dataclass(frozen=True)
class Command:
    """A command: its function, the stages whose keys are its options, and what shows the result."""

    function: Callable[..., Any]
    stages: tuple[str, ...]
    sets: tuple[str, ...]  # the stages whose keys --set takes
    show: Callable[[Any], None]

    @property
    def about(self) -> str:
        """The first sentence of its help."""
        return inspect.getdoc(self.function).partition("\n")[0]  # type: ignore[union-attr]

    def build(self, name: str) -> Any:
        """The command as typer has it."""
        parameters = [*self._keys(), *self._own(), *self._shared()]

        def run(**values: Any) -> None:
            show.run(lambda progress: self._call(values, progress), self.show, values["as_json"])

        run.__doc__ = self.function.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, cls=Panels)(run)
        return get_command(app)

    def _call(self, values: Mapping[str, Any], progress: Progress) -> Any:
        own = {parameter.name: values[parameter.name] for parameter in self._own()}
        if not self.sets:
            return self.function(Typed(None, {}, progress), **own)
        from prlhf.recipes import typed_settings

        options = {stage: {key: values[key] for key in self._of(stage)} for stage in self.stages}
        settings = typed_settings(options, values["set_"] or [], self.sets)
        return self.function(Typed(values["recipe"], settings, progress), **own)

    def _of(self, stage: str) -> dict[str, dict[str, Any]]:
        """The keys of `stage` that the command has."""
        return {key: one for key, one in declared()[stage].items() if self.stages[0] in one.get("of", self.stages)}

    def _keys(self) -> list[inspect.Parameter]:
        return [_option(key, about) for stage in self.stages for key, about in self._of(stage).items()]

    def _own(self) -> list[inspect.Parameter]:
        """The parameters of the function except the first, `typed`. Their annotations are texts, as PEP 563 has it."""
        own = list(inspect.signature(self.function).parameters.values())[1:]
        found = [one.replace(annotation=eval(one.annotation, self.function.__globals__)) for one in own]
        return [_under(OWN, one) for one in found]

    def _shared(self) -> list[inspect.Parameter]:
        """`--recipe` and `--set`, for commands that have settings, and `--json`."""
        names = [f"`{stage}`" for stage in dict.fromkeys([*self.sets, *self.stages])]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        recipe = typer.Option(help=f"Recipe, a file or a shipped one's name, of which {listed} are used.")
        example = f"--set {self.sets[0]}.seed=1" if self.sets else ""
        sets = typer.Option("--set", metavar="KEY=VALUE", help=f"Any key of a recipe, as in {example}. Repeatable.")
        shared = [("recipe", str, recipe), ("set_", list[str], sets)] if self.sets else []
        found = [_parameter(name, kind | None, option, None) for name, kind, option in shared]
        return [_under(OWN, one) for one in [*found, _parameter("as_json", bool, show.Json, False)]]


def of(*stages: str, show: Callable[[Any], None], sets: tuple[str, ...] = ()) -> Callable[..., Command]:
    """Make a command of a function. `sets`: the stages whose keys --set takes, if they are not `stages`."""
    return lambda function: Command(function, stages, sets or stages, show)


def _option(key: str, about: Mapping[str, Any]) -> inspect.Parameter:
    choices = about.get("choices", ())
    kind = Literal[tuple(choices)] if about["kind"] == "choice" else KINDS[about["kind"]]
    if about.get("argument"):
        return _parameter(key, kind, typer.Argument(help=about["help"]), inspect.Parameter.empty)
    named = about["kind"] == "name"
    option = typer.Option(
        about["flag"],
        help=about["help"],
        rich_help_panel=about["panel"],
        metavar=about.get("form"),
        autocompletion=(lambda: choices) if named else None,
    )
    return _parameter(key, kind | None, option, None)


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _under(panel: str, parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with a heading for its option, unless it has one."""
    info = parameter.annotation.__metadata__[0]
    if info.rich_help_panel is None:
        info.rich_help_panel = panel
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


class Panels(TyperCommand):
    """A command whose help has its options under headings, without rich, which takes long to import."""

    @override
    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options heading by heading; those of no key at the end."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                default = "Arguments" if param.param_type_name == "argument" else OWN
                panels.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(record)
        for panel, records in sorted(panels.items(), key=lambda item: item[0] == OWN):
            with formatter.section(panel):
                formatter.write_dl(records)
