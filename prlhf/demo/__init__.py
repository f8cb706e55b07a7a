"""`prlhf demo`: the experiment of figure 3 in miniature, from data to picture."""
