"""Pictures and TensorBoard logs of a search, from what it writes: `python -m vpdarts_fast.report`.

Nothing here knows a space by its name: what is searched stands in the run's files.

run_files          what a run has written, read back; needs no Matplotlib, which the others do
pictures           every picture of a run; cell, curves, finalists and heat_map draw their own, in one style
layout             where the arrows of a cell run
tensorboard        a log while the search runs
"""
