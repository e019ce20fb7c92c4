"""How well a supernet ranks the ops of each edge: `python -m vpdarts_fast.analysis.kendall --help`."""

from vpdarts_fast.analysis.ranking import kendall_tau, true_ranks

__all__ = ["kendall_tau", "true_ranks"]
