"""The store, where a run on Ray survives its machines: the run folder, or `storage`/RUN that all machines can reach.

STORE/checkpoints/checkpoint-TRY-50   see checkpoints.py; written by all workers; TRY is their start time in seconds
STORE/checkpoints/final-TRY           model/, results.json, metrics.jsonl, candidates/: they are moved to the run folder
STORE/recipe.yaml                     for --resume on another machine

A separate store on a local file system is marked as a run (see `prlhf.folders`) until the run is finished.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs
from typing_extensions import override

from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_dir, atomic_file
from prlhf.folders import claim, mark, unmark
from prlhf.model import workers
from prlhf.online.candidates import move_candidates
from prlhf.progress import Progress
from prlhf.recipes import load_recipe
from prlhf.train.checkpoints import fault, step_of

# what the workers hand to Ray Train, by the names that on_ray.Upload gives; and what Ray Train writes beside them
OURS = re.compile(r"(checkpoint-\d+-\d+|final-\d+)")
OF_RAY = (".validate_storage_marker", "checkpoint_manager_snapshot.json")


class Store:
    """The run's folder on the storage: a local path, or what pyarrow can reach, such as s3:// and gs://."""

    def __init__(self, storage: str | None, folder: Path) -> None:
        self.where = f"{storage.rstrip('/')}/{folder.name}" if storage else str(folder.resolve())
        if "://" in self.where:
            try:
                self.files, self.path = fs.FileSystem.from_uri(self.where)
            except (ValueError, OSError) as error:
                raise PrlhfError(
                    f"storage = {storage} cannot be reached: {one_line(error)}", "fix --storage"
                ) from error
        else:
            self.where = str(Path(self.where).resolve())
            self.files, self.path = fs.LocalFileSystem(), self.where
        local = isinstance(self.files, fs.LocalFileSystem) and Path(self.path).resolve() != folder.resolve()
        self._apart = Path(self.path) if local else None

    @override
    def __str__(self) -> str:
        return self.where

    def claim(self) -> None:
        """Raise PrlhfError if the folder holds something else than a run. Writes nothing."""
        if self._apart:
            claim(self._apart, "run", hint="choose another --out or --storage")

    def begin(self, recipe: Path) -> None:
        """Mark the claimed folder as this run's, and copy the settings there."""
        if self._apart:
            mark(self._apart, "run")
        self.put(recipe)

    def give_back(self) -> None:
        """Remove what belongs to the run: it is finished, or never started."""
        self.remove_checkpoints()
        if self._apart:
            unmark(self._apart, ["recipe.yaml"])

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists."""
        return bool(self.files.get_file_info(f"{self.path}/{name}").type != fs.FileType.NotFound)

    def put(self, file: Path) -> None:
        """Copy `file` to the store, unless it is in the store."""
        if Path(self.path) != file.parent.resolve():
            self.files.create_dir(self.path)
            fs.copy_files(str(file), f"{self.path}/{file.name}", fs.LocalFileSystem(), self.files)

    def get(self, name: str, to: Path) -> None:
        """Copy a file, or the contents of a folder, to `to`."""
        to.mkdir(parents=True, exist_ok=True) if self._is_folder(name) else to.parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(f"{self.path}/{name}", str(to), self.files, fs.LocalFileSystem())

    def names(self, start: str) -> list[str]:
        """Folders in checkpoints/ that begin with `start`, the newest first."""
        chosen = fs.FileSelector(f"{self.path}/checkpoints", allow_not_found=True)
        found = [Path(info.path) for info in self.files.get_file_info(chosen)]
        return [path.name for path in sorted(found, key=_age, reverse=True) if path.name.startswith(start)]

    def checkpoints(self) -> list[str]:
        """The names of the checkpoints, the newest first."""
        return self.names("checkpoint-")

    def remove_checkpoints(self) -> None:
        """Remove what our workers and Ray Train wrote into checkpoints/, and nothing else."""
        inside = fs.FileSelector(f"{self.path}/checkpoints", allow_not_found=True)
        for info in self.files.get_file_info(inside):
            if info.type == fs.FileType.Directory and OURS.fullmatch(info.base_name):
                self.files.delete_dir(info.path)
            elif info.type == fs.FileType.File and info.base_name in OF_RAY:
                self.files.delete_file(info.path)
        if self.exists("checkpoints") and not self.files.get_file_info(inside):
            self.files.delete_dir(f"{self.path}/checkpoints")

    def _is_folder(self, name: str) -> bool:
        return bool(self.files.get_file_info(f"{self.path}/{name}").type == fs.FileType.Directory)


def _age(path: Path) -> tuple[int, str]:
    number = path.name.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0), path.name


def fetch_recipe(folder: Path, cluster: ClusterConfig) -> None:
    """Copy the recipe of a run that was started on another machine."""
    if not (folder / "recipe.yaml").exists() and cluster.storage:
        store = Store(cluster.storage, folder)
        if store.exists("recipe.yaml"):
            store.get("recipe.yaml", folder / "recipe.yaml")


def keep_cluster(folder: Path, cluster: ClusterConfig) -> None:
    """Add the cluster's settings to the recipe, so that --resume uses the same."""
    path = folder / "recipe.yaml"
    with atomic_file(path) as beside:
        section = yaml.safe_dump({"cluster": cluster.model_dump(mode="json")}, sort_keys=False)
        beside.write_text(path.read_text(encoding="utf-8") + section, encoding="utf-8")


def saved_cluster(folder: Path) -> dict[str, Any]:
    """The cluster's settings of the run in `folder`; empty if there is no run, or it runs in one process."""
    path = folder / "recipe.yaml"
    return load_recipe(path).get("cluster", {}) if path.exists() else {}


def fetch_newest(store: Store, folder: Path, progress: Progress) -> int:
    """Copy the newest complete checkpoint into a worker's `folder`; returns its step, 0 if there is none."""
    for name in store.checkpoints():
        here = folder / "checkpoints" / f"checkpoint-{step_of(Path(name))}"
        shutil.rmtree(here, ignore_errors=True)
        store.get(f"checkpoints/{name}", here)
        why = fault(here)
        if why == "":
            return step_of(here)
        shutil.rmtree(here)
        if why and workers.rank() == 0:
            progress.note(f"warning: {store}/checkpoints/{name} is damaged ({why}): resuming from the one before it")
    return 0


def fetch_results(store: Store, folder: Path) -> None:
    """Move logs, candidates, results and last the model from the store to the run folder; the model says it is done."""
    with atomic_dir(folder / ".final") as final:
        store.get(f"checkpoints/{store.names('final-')[0]}", final)
    move_candidates(folder / ".final", folder)
    for name in ("samples.jsonl", "metrics.jsonl", "results.json"):
        if (folder / ".final" / name).exists():
            (folder / ".final" / name).replace(folder / name)
    (folder / ".final" / "model").rename(folder / "model")
    shutil.rmtree(folder / ".final")
    store.give_back()
