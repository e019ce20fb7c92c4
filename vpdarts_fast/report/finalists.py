"""What the finalists of a search reached, by the length of their trainings."""

from __future__ import annotations

from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.report.run_files import Finalists, Run
from vpdarts_fast.report.style import INK, SERIES_COLOURS, new_figure
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype


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
    axes.set_yticks(range(len(cells)), [_name(cell, run, finalists) for cell in cells], fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10))
    axes.set_xlabel("accuracy on validation images (%)", fontsize=11)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
    return figure


def ranked(finalists: Finalists) -> list[Genotype]:
    """The cells by the longest training that they had, then by its mean accuracy, best first."""
    best: dict[Genotype, tuple[int, float]] = {}
    for (cell, steps), accuracies in finalists.accuracies.items():
        best[cell] = max(best.get(cell, (0, 0.0)), (steps, fmean(accuracies)))
    return sorted(best, key=lambda cell: best[cell], reverse=True)


def _name(cell: Genotype, run: Run, finalists: Finalists) -> str:
    marks = [mark for mark, other in (("taken", run.genotype), ("search", finalists.search)) if cell == other]
    return " ".join([f"({', '.join(marks)})", str(cell)] if marks else [str(cell)])
