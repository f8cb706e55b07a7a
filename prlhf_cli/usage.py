"""Errors of the command line's syntax, on one line like all others: what is wrong, why, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from prlhf.errors import nearest
from prlhf_cli import show

if TYPE_CHECKING:
    from typing_extensions import override as override
else:

    def override(method):
        """Replace typing_extensions.override, whose import would slow help down."""
        return method


class OneLine(TyperGroup):
    """A group of commands that shows an error on one line; typer would show a box of several lines."""

    @override
    def get_params(self, ctx: Any) -> list[Any]:
        """Give typer's own flags a default: for None it imports pydantic, a third of the time of `--help`."""
        params = super().get_params(ctx)
        for param in params:
            if param.default is None and getattr(param, "is_flag", False):
                param.default = False
        return params

    @override
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; show a syntax error on one line."""
        given = [_at_home(word) for word in (sys.argv[1:] if args is None else args)] or ["--help"]
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except TyperException as error:
            show.print_error(explain(error))
            code = 2
        except Abort:
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def _at_home(word: str) -> str:
    """Fill in the home folder. The library is imported only for words that may name it."""
    if "~" not in word and "$" not in word:
        return word
    from prlhf.files import at_home

    return at_home(word)


def explain(error: Any) -> str:
    """A usage error of typer as `what and why; what to do`. Its classes are private, so its fields tell its kind."""
    context: Any = getattr(error, "ctx", None)
    see_help = f"see `{context.command_path if context else 'prlhf'} --help`"
    if hasattr(error, "possibilities"):
        known = [name for p in context.command.params for name in p.opts] if context else []
        return f"unknown option {error.option_name}; {nearest(error.option_name, known)} ({see_help})"
    cause = error.__cause__
    if hasattr(cause, "errors") and getattr(error, "param", None) is not None:  # pydantic, on an option's value
        return _refused(error.param, cause.errors()[0], see_help)
    if hasattr(context, "command") and hasattr(context.command, "commands") and error.message.startswith("No such"):
        name = error.message.split("'")[1]
        return f"unknown command '{name}'; {nearest(name, context.command.commands)}"
    line = error.format_message().rstrip(".")
    return f"{line[0].lower()}{line[1:]}; {see_help}"


def _refused(param: Any, problem: dict[str, Any], see_help: str) -> str:
    name = param.opts[0] if param.opts[0].startswith("-") else param.name
    choices = param.type_descriptor.choices
    if choices:
        return f"{name} {problem['input']} is not known; {nearest(str(problem['input']), map(str, choices))}"
    why = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").partition(", unable")[0]
    return f"{name} {problem['input']} is refused: it {why}; {see_help}"
