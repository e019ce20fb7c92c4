"""Pictures and TensorBoard logs of a search, from what it writes: `python -m vpdarts_fast.report`.

run_files          what a run has written, read back; needs no Matplotlib, which the others do
pictures           every picture of a run; cell, curves and heat_map draw one each, in one style
tensorboard        a log while the search runs
"""
