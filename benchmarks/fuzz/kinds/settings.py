"""The user's settings: recipes, `--set`, `--space`, and whole command lines."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz import damage
from benchmarks.fuzz.cases import Case, Wrong
from benchmarks.fuzz.kinds.material import Material

# nested aliases: a line of YAML that unfolds to a billion values
BOMB = (
    "[&a [x,x,x,x,x,x,x,x,x]"
    + "".join(f",&{b} [" + ",".join([f"*{a}"] * 9) + "]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]"
)
TEXTS = [
    "", " ", "0", "-1", "1", "2", "0.5", "1e-4", "1e400", "-1e-400", "nan", "inf", "-inf", "true", "no", "null", "~",
    "[]", "{}", "[1", "{a: 1", "- a", "a: b: c", "!!python/object/apply:os.system [ls]", "!!binary x", "&a [*a]", "*a",
    "%", "@", "`", "'", '"', '"\\ud800"', "\\", "\x00", "é", "🙂", "1_000", "0x10", "1:30", "2026-02-28", "=", "<<",
    "? a", "a,b", "9" * 5000, "[" * 500, "[" * 3000, "x" * 3000, "..", "/", "/dev/null", "/dev/null/at/all", "tiny",
    "generic", "all", "ann", "cluster", "0.1:0.9", "1e-5:1e-3:log", "1,2,3", "1,,2", "9:1", "1:2:3:4", ":", "nan:inf",
    "0:0", "1:1000000000000", BOMB, "&a [*a]", "[" * 900 + "]" * 900, "2026-13-45", "!!int x",
    "!!timestamp x", "!!bool x", "{[a]: b}", "! x", "1__0", "0o9", "+.inf",
]  # fmt: skip
ODD_KEYS = [
    "",
    " ",
    "aplha",
    "alpha ",
    "Alpha",
    "train.alpha",
    "generate.seed",
    "judge.seed",
    "a b",
    "é",
    "--k",
    "k=k",
    "0",
]


def recipe(rng: Random, work: Path, material: Material) -> Case:
    from prlhf.config import STAGES
    from prlhf.recipes import load_recipe, resolve, shipped_recipes

    path = damage.fresh(rng.choice(sorted(shipped_recipes().values())), work / "r.yaml")
    how = damage.file(rng, path)

    def read() -> None:
        for section, values in load_recipe(path).items():
            resolve(STAGES[section], {"dataset": "demo"} if section == "prep" else {}, values)

    return Case(f"recipe {how}", read, [path])


def overrides(rng: Random, work: Path, material: Material) -> Case:
    from prlhf.config import STAGES
    from prlhf.recipes import parse_overrides, resolve

    stage = rng.choice(sorted(STAGES))
    keys = [*STAGES[stage].model_fields] * 3 + ODD_KEYS
    texts = [
        f"{rng.choice(keys)}{rng.choice(['=', '=', '=', '', '==', ': '])}{rng.choice(TEXTS)}"
        for _ in range(rng.choice([1, 1, 2]))
    ]
    first = {"dataset": "demo"} if stage == "prep" else {}
    return Case(f"{stage} --set {texts!r:.100}", lambda: resolve(STAGES[stage], first, parse_overrides(texts, stage)))


def space(rng: Random, work: Path, material: Material) -> Case:
    from prlhf.config import SweepConfig, TrainConfig
    from prlhf.recipes import resolve
    from prlhf.sweep.search import search_for, search_kind
    from prlhf.sweep.settings import check_space
    from prlhf.sweep.space import parse_space, texts_by_key

    keys = [*TrainConfig.model_fields] * 2 + ["generate.temperature", "generate.top_p", "generate.seed", *ODD_KEYS]
    texts = [
        f"{rng.choice(keys)}={','.join(rng.choices(TEXTS, k=rng.choice([1, 1, 2, 3])))}"
        for _ in range(rng.choice([1, 1, 2]))
    ]
    changes: dict[str, Any] = rng.choice(
        [
            {},
            {},
            {"trials": 3},
            {"trials": 3, "search": "optuna"},
            {"search": "grid"},
            {"metric": "judge/winrate"},
            {"asha": True},
        ]
    )
    sections = {"train": {"dataset": str(material.data), "model": str(material.base)}}

    def read() -> None:
        sweep = resolve(SweepConfig, {"space": texts_by_key(texts), **changes})
        found = parse_space(texts)
        check_space(found, sections, sweep)
        search_kind(found, sweep)
        search = search_for(found, sections, sweep, [], False)
        if not search.total:
            raise Wrong("a search without trials")
        search.next()

    return Case(f"{texts!r:.100} {changes}", read)


def sweep_recipe(rng: Random, work: Path, material: Material) -> Case:
    """A recipe whose `sweep.space` may hold any values."""
    from prlhf.config import SweepConfig
    from prlhf.recipes import resolve
    from prlhf.sweep.space import space_of

    good = {
        "space": {"alpha": "0.1:0.9", "k": [1, 5], "lr": "1e-5:1e-3:log"},
        "trials": 3,
        "metric": "score",
        "seed": 1,
    }
    changed, how = damage.tree(rng, good, damage.YAML_ONLY)
    text = damage.to_yaml(changed)

    def read() -> None:
        from prlhf.recipes import load_recipe

        (work / "r.yaml").write_text(
            f"sweep:\n  {text.replace(chr(10), chr(10) + '  ')}\n", encoding="utf-8", errors="replace"
        )
        space_of(resolve(SweepConfig, load_recipe(work / "r.yaml").get("sweep", {})).space)

    return Case(how, read)


# ---- command lines ----

COMMANDS: dict[str, list[str]] = {
    "prep": ["prep", "demo", "--comparisons", "1", "--users", "2"],
    "train": ["train", "--dry-run", "--dataset", "{data}", "--model", "{base}"],
    "generate": ["generate", "{run}", "--max-prompts", "1", "--max-new-tokens", "1", "--users", "ann"],
    "judge": ["judge", "{a}", "{a}", "--set", "bootstrap=2"],
    "judge-llm": ["judge", "{a}", "{a}", "--judge", "llm:m", "--protocol", "plain", "--dry-run"],
    "sweep": ["sweep", "--set", "dataset={data}", "--search", "grid", "--space"],
}
PATHS = [
    "{data}",
    "{run}",
    "{base}",
    "{a}",
    "here.txt",
    "full",
    ".",
    "..",
    "",
    "nowhere/x",
    "x\x00y",
    "~",
    "a" * 300,
    "{a}/x",
    "é🙂",
]


def command(rng: Random, work: Path, material: Material) -> Case:
    """A valid command line with further options and other values; none of them trains for long."""
    name = rng.choice(sorted(COMMANDS))
    line = list(COMMANDS[name])
    options = [
        flag
        for flag in _options(line[0])
        if flag not in ("--resume", "--help", "--workers", "--ray-address", "--best-of")
    ]
    for _ in range(rng.choice([1, 1, 2, 3])):
        flag = rng.choice(options)
        line += [flag] if rng.random() < 0.1 else [flag, rng.choice(TEXTS + PATHS)]
    line += ["--max-new-tokens", "1"] if name == "generate" else []
    line += ["nothing=1"] if name == "sweep" else []  # the last --space, or one argument too many
    good = {
        "data": material.data,
        "run": material.run,
        "base": material.base,
        "a": material.responses / "responses.jsonl",
    }
    args = [_filled(part, good) for part in line]
    (work / "here.txt").write_text("kept\n")
    (work / "full").mkdir()
    (work / "full" / "other.txt").write_text("kept\n")
    watched = [material.data, material.run, material.base, material.responses, work / "here.txt", work / "full"]
    return Case(f"prlhf {' '.join(args)!r:.160}", lambda: _invoke(args, work), watched)


def _filled(part: str, good: dict[str, Path]) -> str:
    for name, path in good.items():
        part = part.replace(f"{{{name}}}", str(path))
    return part


def _options(name: str) -> list[str]:
    from typer.main import get_command

    from prlhf_cli.main import app

    group: Any = get_command(app)
    return sorted({flag for param in group.commands[name].params for flag in param.opts if flag.startswith("--")})


def _invoke(args: list[str], work: Path) -> None:
    import contextlib

    from typer.testing import CliRunner

    from prlhf.errors import PrlhfError
    from prlhf_cli.main import app

    with contextlib.chdir(work):
        result = CliRunner().invoke(app, args, prog_name="prlhf")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    if result.exit_code == 2 and len(errors) == 1 and "; " in errors[0]:
        raise PrlhfError(*errors[0].split("; ", 1))
    if result.exit_code != 0 or errors:
        raise Wrong(f"exit code {result.exit_code}, and it says: {result.stderr[-300:]!r}")
