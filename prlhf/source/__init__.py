"""The one reader of tables: prompts, responses and raw preference data, in every format that people keep them in.

It does not know what a row means. A row that cannot be parsed is passed on with its problem; a file that cannot be
read at all raises PrlhfError.
"""
