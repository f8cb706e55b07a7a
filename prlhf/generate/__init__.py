"""A checkpoint and prompts to responses, many users in one batch."""

from prlhf import make_callable

make_callable(__name__)
