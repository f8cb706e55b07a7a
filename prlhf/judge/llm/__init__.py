"""A language model as the judge: its questions, the server that answers them, and what that costs."""
