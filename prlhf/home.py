"""Paths in the home folder, as users write them."""

from __future__ import annotations

import os
import re

# At the beginning, or where a path begins within a setting: `reward:~/run`, `dataset=~/a,~/b`
_HOME = re.compile(r"(?:^|(?<=[=:,]))(?:~|\$HOME|\$\{HOME\})(?=/)")


def at_home(text: str) -> str:
    """`text` with the home folder for each `~/` and `$HOME/` that a shell has left alone, as it does within quotes."""
    if text in ("~", "$HOME", "${HOME}"):
        return os.path.expanduser("~")
    return _HOME.sub(lambda _: os.path.expanduser("~"), text)
