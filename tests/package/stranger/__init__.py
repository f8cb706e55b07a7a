"""A package of somebody else, which adds one extension of each kind to prlhf."""
