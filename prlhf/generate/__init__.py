"""A checkpoint and prompts to responses, many users in one batch."""

from prlhf.callable_package import make_callable

make_callable(__name__)
