"""Training over a grid of settings."""
