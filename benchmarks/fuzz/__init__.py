"""Many thousand bad inputs: valid files and values are damaged at random, and read as a user's command reads them.

Every case must end in one of two ways: the input is accepted, and the result is complete; or it is refused with one
line, and nothing was changed. Anything else is a fault: another exception, several lines, a hang, a crash, or partial
files.

    python -m benchmarks.fuzz --cases 20000 --seed 1
    python -m benchmarks.fuzz --only prepared --cases 500
    python -m benchmarks.fuzz --case prepared:17          repeat one case, with its traceback

`damage.py` damages; the modules of `kinds/` define what is damaged and how it is read; `cases.py` runs a case, and
`campaign.py` runs many of them, in processes that may crash.
"""
