"""Users on real text, with a real language model: the arms, their runs, what they are worth, and the page about them.

    python -m benchmarks.real_text psoups-strong --raw FOLDER     # run what is missing, then say what was found
    python -m benchmarks.real_text psoups-strong --list           # what is missing, and its commands

experiments.py   the experiments and their arms, as data
tasks.py         an experiment as commands, each with the file that shows that it is done
scores.py        rewards and log-probs of held-out comparisons, read as their user, as the generic one and as another
measures.py      what was written, measured: length, words, repetitions, perplexity under the base
style.py         those measures, as functions of a text
intervals.py     means with intervals, clustered by prompt
gather.py        all of these files as one table of numbers
page.py          the table as a page and a picture
"""
