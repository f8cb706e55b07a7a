"""What a policy writes in the rounds of its training, scored by a reward model: `online-dpo`, `grpo` and `rloo`."""
