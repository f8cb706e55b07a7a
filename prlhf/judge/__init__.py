"""Two sets of responses to verdicts and win-rates with intervals."""

from prlhf import make_callable

make_callable(__name__)
