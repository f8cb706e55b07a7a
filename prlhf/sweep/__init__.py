"""Training at many points of a space of settings."""

from prlhf import make_callable

make_callable(__name__)
