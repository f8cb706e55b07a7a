"""Commands killed with `kill -9` at a random time: each is continued and compared with an undisturbed one.

    python -m benchmarks.faults --kills 60 --seed 1
    python -m benchmarks.faults --only train --kills 5 --keep /tmp/kept

A stage is a command of prlhf on small data. It first runs undisturbed. Then it runs many times in new folders, where
its whole process group is killed at a random time of its run. It is continued as its messages say (and sometimes killed
again), and its result must be that of the undisturbed run: every file, byte for byte or number by number except for
times, with no other files and no process left.

`stages.py` defines the commands, `kills.py` kills and compares, `outcome.py` reads the folders to compare.
"""
