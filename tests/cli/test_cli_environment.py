"""`prlhf env` and `prlhf recipes`: what a bug report needs, and what recipes there are."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from prlhf import __version__
from prlhf.environment import environment
from prlhf.recipes import described_recipes, schema, shipped_recipes
from prlhf_cli.main import app


def said(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_env_tells_versions_and_keeps_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("https_proxy", "http://me:pass@proxy:1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pass@server:8000/v1")
    found = json.loads(said("env", "--json"))
    assert found["versions"]["prlhf"] == __version__
    assert found["variables"]["OPENAI_API_KEY"] == "set" == found["variables"]["HTTPS_PROXY"]
    assert found["variables"]["OPENAI_BASE_URL"] == "http://server:8000/v1"
    for shown in (said("env"), json.dumps(found)):
        assert "secret" not in shown
        assert "me:pass" not in shown


def test_env_tells_a_package_that_is_missing_and_a_cache_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr("prlhf.environment.PACKAGES", ("no-such-package",))
    found = environment()
    assert found.versions["no-such-package"] is None
    assert found.folders["prlhf"].exists is False
    assert found.folders["prlhf"].writable is True


def test_recipes_are_listed_with_what_they_are_for() -> None:
    listed = json.loads(said("recipes", "list", "--json"))["recipes"]
    assert [one["name"] for one in listed] == list(shipped_recipes())
    for one in described_recipes():
        assert one.command.startswith("prlhf "), one
        assert len(one.about) > 20, one
    assert "demo-crowd" in said("recipes")


def test_a_recipe_is_shown_as_it_stands() -> None:
    assert said("recipes", "show", "demo").strip() == shipped_recipes()["demo"].read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["show"], "show needs the name of a recipe"),
        (["show", "demoo"], "did you mean 'demo'"),
        (["list", "demo"], "list takes no name, got 'demo'"),
        (["describe"], "describe is not known"),
    ],
)
def test_what_is_refused(args: list[str], words: str) -> None:
    assert words in said("recipes", *args, code=2)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_follows_the_schema(name: str) -> None:
    jsonschema.validate(yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8")), schema())


@pytest.mark.parametrize(
    "recipe", [{"trian": {}}, {"train": {"alhpa": 1}}, {"train": {"alpha": 2}}, {"train": {"loss": "log"}}]
)
def test_the_schema_refuses_what_prlhf_refuses(recipe: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, json.loads(said("recipes", "schema")))
