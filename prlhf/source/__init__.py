"""Reading tables: prompts, responses and raw preference data, in every common format.

This package does not interpret the rows. A row that cannot be parsed is returned with its `problem`; a file that cannot
be read raises PrlhfError.
"""
