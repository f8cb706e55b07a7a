"""What a policy writes during its training, ranked by a reward model: the comparisons of `--objective online-dpo`."""
