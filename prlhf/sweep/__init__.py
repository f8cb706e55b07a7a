"""Training at many points of a space of settings."""

from prlhf.callable_package import make_callable

make_callable(__name__)
