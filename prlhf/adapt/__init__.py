"""`prlhf adapt`: new users from a handful of choices, with the language model as it is."""

from prlhf import make_callable

make_callable(__name__)
