"""The tables and figures of VP-DARTS' paper, by many runs: ``python -m vpdarts_fast.paper``."""
