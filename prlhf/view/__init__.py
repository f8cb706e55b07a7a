"""`prlhf data show`: rows as the model reads them, and what users chose of the same pairs."""
