"""Training at many points of a space of settings."""
