"""`prlhf env`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Environment


def show_environment(found: Environment) -> None:
    """Show the system, the versions, the caches and the settings."""
    system = found.system
    show.say(f"{system.platform}, {system.cpu}, {system.cores} cores, {system.memory_gib} GiB")
    for device in found.devices:
        show.say(f"GPU: {device.name}, {device.memory_gib} GiB")
    if not found.devices:
        show.say("GPU: none that PyTorch can use")
    versions = [(name, version or "not installed") for name, version in found.versions.items()]
    show.table(system.python, ["package", "version"], versions)
    folders = [
        (name, folder.path, "yes" if folder.writable else "NO", f"{folder.free_gib} GiB")
        for name, folder in found.folders.items()
    ]
    show.table("caches", ["of", "folder", "writable", "free"], folders, texts=2)
    for name, value in found.variables.items():
        show.say(f"{name}: {value}")


@options.of(show=show_environment)
def command(_typed: options.Typed) -> Environment:
    """Show versions, devices, caches and settings of this installation: what a bug report needs. No secret is shown.

    prlhf env

    prlhf env --json
    """
    from prlhf.environment import environment

    return environment()
