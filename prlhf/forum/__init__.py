"""The synthetic forum: its posts, its readers' tastes, and the base trained on it. Imports nothing else of prlhf."""
