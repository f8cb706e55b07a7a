"""Prepared data and a base model to a personalized policy."""
