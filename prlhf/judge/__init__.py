"""Two sets of responses to verdicts and win-rates with intervals."""
