"""Commands killed with `kill -9` at a random time, gone on with, and compared with the same command left in peace.

    python -m benchmarks.faults --kills 60 --seed 1
    python -m benchmarks.faults --only train --kills 5 --keep /tmp/kept

A stage is a command of prlhf on small data. It is run once undisturbed; then again and again in folders of its own,
where its whole process group is killed at a time drawn at random from its run; it is gone on with as its messages say
(and sometimes killed once more), and what it leaves must be what the undisturbed one left: every file, byte for byte or
number by number but for times, with nothing beside them and no process left behind.

`stages.py` says what is run, `kills.py` kills and compares, `outcome.py` reads what is compared.
"""
