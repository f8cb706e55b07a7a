"""A baseline: the base, told the user's name."""

from __future__ import annotations

from typing_extensions import override

from prlhf.dataset import Text
from prlhf.generate.baselines import Baseline, Fits, baseline
from prlhf.generate.readers import Reader


@baseline("named")
class Named(Baseline):
    """The base, with the user's id in front of a plain prompt."""

    as_base = True

    @override
    def show(self, prompt: Text, reader: Reader, fits: Fits) -> tuple[Text, str]:
        return f"{reader.id}: {prompt}", ""
