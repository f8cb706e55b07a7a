"""Personalized language models from personalized human feedback (P-RLHF, arXiv 2402.05133)."""

__version__ = "0.1.0"
