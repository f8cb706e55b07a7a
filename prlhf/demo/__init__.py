"""`prlhf demo`: the experiment of the paper's Figure 3 in miniature, from data to picture."""
