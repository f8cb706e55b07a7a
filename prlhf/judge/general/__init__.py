"""`prlhf judge --general`: what personalization costs in general ability, on texts and multiple choice."""
