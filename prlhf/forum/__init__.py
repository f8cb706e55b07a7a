"""The synthetic forum: its posts, its readers' tastes, and the base model. It imports nothing else of prlhf."""
