"""What the finalists of a search reached, by the length of their trainings."""

from __future__ import annotations

import re
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.report.run import Finalists, Run
from vpdarts_fast.report.style import INK, SERIES_COLOURS, new_figure

_LONGEST, _LONGEST_DIFFERENCE = 110, 50
"""Letters of a label that is the text of a cell, and of one that says where the text differs."""


def finalists_figure(run: Run) -> Figure | None:
    """A row for each cell, the best of the longest trainings on top, with a mark for each of its rungs.

    The search's own cell and the winner are named. None without finalists, or where none was trained.
    """
    finalists = run.result.finalists if run.result else None
    if finalists is None or not finalists.accuracies:
        return None
    rungs = sorted({steps for _, steps in finalists.accuracies})
    cells = ranked(finalists)
    figure, body = new_figure(10, 1.6 + 0.3 * len(cells), "finalists", run.title)
    axes = body.subplots()
    for position, steps in enumerate(rungs):
        reached = [
            (row, accuracy)
            for row, cell in enumerate(cells)
            for accuracy in finalists.accuracies.get((cell, steps), ())
        ]
        rows, accuracies = zip(*reached, strict=True)
        colour = SERIES_COLOURS[position % len(SERIES_COLOURS)]
        axes.plot(accuracies, rows, linestyle="", marker="o", color=colour, label=f"{steps:,} steps")
    labels = [_name(cell, run.title, finalists) for cell in cells]
    axes.set_yticks(range(len(cells)), labels, fontsize=8, color=INK, parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10))
    axes.set_xlabel("accuracy on validation images (%)", fontsize=11)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
    return figure


def ranked(finalists: Finalists) -> list[str]:
    """The cells by the longest training that they had, then by its mean accuracy, best first."""
    best: dict[str, tuple[int, float]] = {}
    for (cell, steps), accuracies in finalists.accuracies.items():
        best[cell] = max(best.get(cell, (0, 0.0)), (steps, fmean(accuracies)))
    return sorted(best, key=lambda cell: best[cell], reverse=True)


def _name(cell: str, taken: str, finalists: Finalists) -> str:
    """The text of a cell; where it is long, what it has in other places than the one that was taken."""
    others = (("taken", taken), ("search", finalists.search))
    marks = ", ".join(mark for mark, other in others if cell == other)
    if len(cell) > _LONGEST:
        cell = _different_words(cell, taken) if cell != taken else "as above"
    return f"({marks}) {cell}" if marks else cell


def _different_words(text: str, other: str) -> str:
    """The words of a text that the other one has not at their places, and an ellipsis for the rest."""
    words, others = text.split(), other.split()
    if len(words) == len(others):
        same = [word == its for word, its in zip(words, others, strict=True)]
    else:
        same = [word in others for word in words]
    found = " ".join(
        "…" if is_same else word.strip("()[],'\"") for word, is_same in zip(words, same, strict=True)
    )
    found = re.sub(r"…(?: …)+", "…", found)
    return found if len(found) <= _LONGEST_DIFFERENCE else found[: _LONGEST_DIFFERENCE - 1] + "…"
