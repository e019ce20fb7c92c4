"""Searches that look accuracies up in a benchmark table: `python -m vpdarts_fast.search.tabular --help`."""
