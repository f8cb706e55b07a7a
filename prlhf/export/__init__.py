"""A run to files that other programs read: a person as an ordinary LoRA adapter."""

from prlhf import make_callable

make_callable(__name__)
