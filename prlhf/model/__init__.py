"""The base model, the user model, and what binds, scores, saves and loads them."""
