"""`prlhf env`."""

from __future__ import annotations

from typing import Annotated, Any

from prlhf_cli import show


def command(as_json: Annotated[bool, show.Json] = False) -> None:
    """Show versions, devices, caches and settings of this installation: what a bug report needs. No secret is shown.

    prlhf env

    prlhf env --json
    """

    def work(_bars: show.Bars) -> dict[str, Any]:
        from prlhf.environment import environment

        return environment()

    show.run(work, _show, as_json)


def _show(found: dict[str, Any]) -> None:
    system = found["system"]
    show.say(f"{system['platform']}, {system['cpu']}, {system['cores']} cores, {system['memory_gib']} GiB")
    for device in found["devices"]:
        show.say(f"GPU: {device['name']}, {device['memory_gib']} GiB")
    if not found["devices"]:
        show.say("GPU: none that PyTorch can use")
    versions = [(name, version or "not installed") for name, version in found["versions"].items()]
    show.table(system["python"], ["package", "version"], versions)
    folders = [
        (name, folder["path"], "yes" if folder["writable"] else "NO", f"{folder['free_gib']} GiB")
        for name, folder in found["folders"].items()
    ]
    show.table("caches", ["of", "folder", "writable", "free"], folders, texts=2)
    for name, value in found["variables"].items():
        show.say(f"{name}: {value}")
