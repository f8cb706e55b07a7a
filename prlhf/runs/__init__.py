"""Training runs on disk: what each of them is, a page of one, and several side by side."""
