"""Prepared data and a base model to a personalized policy."""

from prlhf import make_callable

make_callable(__name__)
