"""Bad input by the thousand: good files and values are damaged at random, and read as a user's command would read them.

Every case must end in one of two ways: it is accepted, and what came out is whole, or it is refused by one line and
nothing was touched. Anything else is a fault: another exception, several lines, a hang, a crash, half-written files.

    python -m benchmarks.fuzz --cases 20000 --seed 1
    python -m benchmarks.fuzz --only prepared --cases 500
    python -m benchmarks.fuzz --case prepared:17          one case again, with its traceback

`damage.py` damages, the modules of `kinds/` say what is damaged and how it is read, `cases.py` runs a case and
`campaign.py` runs many of them, in processes that may crash.
"""
