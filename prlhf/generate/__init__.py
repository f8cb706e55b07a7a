"""A checkpoint and prompts to responses, many users in one batch."""
