"""docs/CLUSTER.md and its manifests: valid schemas, existing commands, and figures from the dry run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from prlhf.config import ServeConfig
from prlhf.serve.keys import check_host
from prlhf.serve.replicas import build
from prlhf_cli import docs
from prlhf_cli.main import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGE = (ROOT / "docs/CLUSTER.md").read_text(encoding="utf-8")
FILES = [ROOT / "docs/CLUSTER.md", *sorted((ROOT / "docs/cluster").iterdir())]


def manifest(name: str) -> Any:
    return yaml.safe_load((ROOT / "docs/cluster" / name).read_text(encoding="utf-8"))


# ---- manifests ----


def check_raycluster(cluster: Any) -> None:
    jsonschema.validate(cluster, json.loads((ROOT / "tests/schemas/raycluster.json").read_text()))


def cluster_of(name: str) -> Any:
    """The RayCluster of a manifest, or the one that a RayService makes."""
    found = manifest(name)
    if found["kind"] == "RayService":
        jsonschema.validate(found, json.loads((ROOT / "tests/schemas/rayservice.json").read_text()))
        found |= {"kind": "RayCluster", "spec": found["spec"]["rayClusterConfig"]}
    return found


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_the_kubernetes_manifest_fits_its_schema(name: str) -> None:
    cluster = cluster_of(name)
    check_raycluster(cluster)
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for spec in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for box in spec["containers"] for mount in box["volumeMounts"]} == volumes
        for box in spec["containers"]:
            assert box["resources"]["requests"] == box["resources"]["limits"]


@pytest.mark.parametrize("change", ["kind", "replicas", "quantity", "both"])
def test_the_schema_refuses(change: str) -> None:
    cluster = manifest("raycluster.yaml")
    group = cluster["spec"]["workerGroupSpecs"][0]
    box = group["template"]["spec"]["containers"][0]
    if change == "kind":
        cluster["kind"] = "Raycluster"
    elif change == "replicas":
        group["maxReplica"] = group.pop("maxReplicas")
    elif change == "quantity":
        box["resources"]["limits"]["nvidia.com/gpu"] = 1  # Kubernetes would take it; this page writes texts
    else:
        box["env"][0]["valueFrom"] = {"secretKeyRef": {"key": "token"}}
    with pytest.raises(jsonschema.ValidationError):
        check_raycluster(cluster)


def test_ray_serve_takes_the_application_of_its_manifest() -> None:
    """By Ray's own schema; what it imports exists, its settings are those of `serve`, and they fit on its machines."""
    service = manifest("rayservice.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    with pytest.raises(ValidationError):
        ServeDeploySchema.model_validate(config | {"proxy_location": "Everywhere"})
    assert {*config} <= {*ServeDeploySchema.model_fields}  # it ignores what it does not know
    (given,) = config["applications"]
    assert {*given} <= {*type(application).model_fields}
    for deployment in given["deployments"]:
        assert {*deployment} <= {*type(application.deployments[0]).model_fields}
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    run = application.args.pop("run")
    settings = ServeConfig.model_validate({"host": config["http_options"]["host"], **application.args})
    check_host(settings)
    assert {each.name for each in application.deployments} < {"Keeper", "Entrance", "Replica"}
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (box,) = group["template"]["spec"]["containers"]
    assert [settings.replicas, settings.max_replicas] == [group["minReplicas"], group["maxReplicas"]]
    assert float(box["resources"]["limits"]["nvidia.com/gpu"]) == settings.gpus_per_replica
    others = sum(each.ray_actor_options.num_cpus for each in application.deployments)
    assert settings.cpus_per_replica + others + 0.5 <= float(box["resources"]["limits"]["cpu"])  # two entrances
    mounts = {mount["mountPath"] for mount in box["volumeMounts"]}
    assert {f"/{Path(path).parts[1]}" for path in (run, settings.keys)} <= mounts


def test_the_autoscaler_takes_its_manifest() -> None:
    """Ray's own schema and checks accept it; they contact no cloud."""
    config = manifest("autoscaler.yaml")
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"max_worker": 8}))


def test_both_clusters_grow_from_none_to_eight_and_spare_the_head() -> None:
    aws, kubernetes = manifest("autoscaler.yaml"), manifest("raycluster.yaml")["spec"]
    head, gpu = (aws["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"]["CPU"] == int(kubernetes["headGroupSpec"]["rayStartParams"]["num-cpus"]) == 0
    group = kubernetes["workerGroupSpecs"][0]
    assert (gpu["min_workers"], gpu["max_workers"]) == (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    assert aws["max_workers"] == 8
    assert kubernetes["enableInTreeAutoscaling"]


def test_one_version_of_ray() -> None:
    """All machines need the same version, and the pages name the pinned one."""
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert pinned[1] == ray.__version__
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    assert {found for text in texts for found in re.findall(r"ray:(\d+\.\d+\.\d+)", text)} == {pinned[1]}
    assert {cluster_of(f"{name}.yaml")["spec"]["rayVersion"] for name in ("raycluster", "rayservice")} == {pinned[1]}


def test_no_manifest_holds_a_secret() -> None:
    """The value of a token, key or password is a reference, a path or a switch."""
    for name in ("raycluster.yaml", "rayservice.yaml", "autoscaler.yaml"):
        for key, value in leaves(manifest(name)):
            if re.search(r"token|key|secret|password", key, re.I):
                assert value in ("token", "keys", "~/.ray/auth_token"), f"{name}: {key}: {value}"
        for variable in variables(manifest(name)):
            assert "valueFrom" in variable or not re.search(r"TOKEN|KEY|SECRET|PASSWORD", variable["name"])


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else ((key, item) for item in tree) if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list):
        yield key, tree
    for name, item in pairs:
        yield from leaves(item, str(name))


def variables(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield from tree.get("env", [])
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from variables(item)


# ---- commands ----


def lines(path: Path) -> list[str]:
    """The indented lines and code spans of a page, or all lines of a manifest; continued lines are joined."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\\\n#? *", "", text)
    if path.suffix == ".md":
        text = "\n".join(
            re.findall(r"^    .*$", text, re.M) + [t.replace("\n", " ") for t in re.findall(r"`([^`]+)`", text)]
        )
    return text.splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    """Commands of prlhf are parsed by its command line, wherever they occur; those of Ray by name and flags."""
    ours = [
        found
        for line in lines(path)
        for found in re.findall(r"(prlhf (?:train|generate|sweep|serve) [^']*-[^']*)", line)
    ]
    for line in ours:
        docs.check_command(line)
    for line in lines(path):
        for name, rest in re.findall(r"\bray (start|stop|up|down|exec|status|get-auth-token|job)\b([^'#]*)", line):
            known = {flag for option in scripts.cli.commands[name].params for flag in option.opts}
            given = {word.partition("=")[0] for word in shlex.split(rest) if word.startswith("--")}
            assert given <= known, f"{path.name}: ray {name}{rest}"
    if path.suffix != "" and path.name != "rayservice.yaml":  # whose application is not started by a command
        assert ours


# ---- figures ----


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.memory import write_inputs

    folder = tmp_path_factory.mktemp("memory")
    write_inputs(folder)
    return folder


@pytest.mark.parametrize(("model", "gpus", "parallel"), [("llama-3-8b", 8, "fsdp"), ("qwen2.5-7b", 1, "ddp")])
def test_a_row_of_the_table(
    inputs: Path, model: str, gpus: int, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import memory

    monkeypatch.chdir(inputs)
    row = memory.row(model, gpus, parallel)
    table = PAGE[PAGE.index(f"| {model}: GPUs") :].split("\n\n")[0]
    assert row in table.splitlines(), "stale; run: python -m benchmarks.memory"


def test_the_terms_of_the_formula(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed with the commands on the page."""
    monkeypatch.chdir(inputs)
    commands = re.findall(r"^    (prlhf train --dry-run .*)$", PAGE, re.M)
    said = []
    for line in commands:
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"])
        assert done.exit_code == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1])["memory_gib"])
    rows = re.findall(r"^\| (\w+) \| .* \| (\S+) \| (\S+) \|$", PAGE[PAGE.index("| term |") :], re.M)
    assert {name for name, *_ in rows} == set(said[1])
    for name, *cells in rows:
        assert cells == [f"{plan[name]:.2f}" if name in plan else "-" for plan in said]


def test_a_cell_is_what_its_command_says(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.memory import cell, command_of

    monkeypatch.chdir(inputs)
    where: tuple[Any, ...] = ("llama-3-8b", 2, "fsdp", False, True, 4096)
    done = CliRunner().invoke(app, [*shlex.split(command_of(*where))[1:], "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["memory_gib"] == pytest.approx(cell(*where)["memory_gib"])
