"""`prlhf serve`: a run behind an OpenAI-compatible API, in which each request says who asks."""

from prlhf import make_callable

make_callable(__name__)
