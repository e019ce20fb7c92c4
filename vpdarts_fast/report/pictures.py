"""All pictures of a run, drawn from the files in its folder alone."""

from __future__ import annotations

from pathlib import Path

from vpdarts_fast.report.cell import draw_cell
from vpdarts_fast.report.curves import curves_figure
from vpdarts_fast.report.finalists import finalists_figure
from vpdarts_fast.report.heat_map import alpha_figure, importance_figure
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.report.style import save_figure


def draw_pictures(run: Path) -> list[Path]:
    """Draws the pictures of a finished, running or interrupted search into its folder.

    ``cell.png`` and ``cell.svg`` show the architecture (so far), ``alpha.png`` the alphas over the
    epochs, ``importance.png`` what leave-one-out evaluation said of every op, ``curves.png`` losses
    and accuracies, and ``finalists.png``, if there were any, what finalists reached. During the
    warm-up there is no cell yet, and without any evaluation no ``importance.png``. Existing pictures
    are replaced. Read are ``metrics.jsonl`` and, once it is there, ``result.json``.

    Returns:
        The paths of the pictures drawn.

    Raises:
        UserError: not a run folder, no complete epoch, a malformed file, or no right to write.
    """
    record = read_run(run)
    drawn = []
    if record.genotype is not None:
        for name in ("cell.png", "cell.svg"):
            draw_cell(record.genotype, run / name, title=record.title)
            drawn.append(run / name)
    figures = {
        "alpha.png": alpha_figure(record),
        "importance.png": importance_figure(record),
        "curves.png": curves_figure(record),
        "finalists.png": finalists_figure(record),
    }
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, run / name, record.title)
            drawn.append(run / name)
    return drawn
