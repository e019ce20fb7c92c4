"""All pictures of a run, drawn from the files in its folder alone."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from vpdarts_fast.report.cell import draw_cell
from vpdarts_fast.report.curves import curves_figure
from vpdarts_fast.report.finalists import finalists_figure
from vpdarts_fast.report.heat_map import alpha_figures, importance_figures
from vpdarts_fast.report.limits import limits_figure
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.report.style import op_colours, save_figure


def draw_pictures(run: Path) -> list[Path]:
    """Draws the pictures of a finished, running or interrupted search into its folder.

    `cell.png` and `cell.svg` show the cells of the architecture (so far), `alpha.png` the alphas over the
    epochs, `importance.png` what leave-one-out evaluation said of every op, `curves.png` losses and
    accuracies, and, if there were any, `finalists.png` what finalists reached and `limits.png` what cells
    cost. Where a space has several cell
    types, alpha and importance have a picture for each, as `alpha-normal.png` and `alpha-reduction.png`.
    During the warm-up there is no cell yet, and without any evaluation no importance. Existing pictures are
    replaced.

    Read are `metrics.jsonl` and, where they are there, `space.json` and `result.json`; the code of the space
    is not needed.

    Args:
        run: the folder.

    Returns:
        The paths of the pictures drawn.

    Raises:
        UserError: not a run folder, no complete epoch, a malformed file, or no right to write.
    """
    record = read_run(run)
    drawn = []
    if record.genotype is not None:
        cells = record.genotype.cells
        for name in ("cell.png", "cell.svg"):
            draw_cell(cells, run / name, title=record.title, colours=op_colours(record.tables, cells))
            drawn.append(run / name)
    figures: dict[str, Figure | None] = {}
    for kind, of_tables in (("alpha", alpha_figures(record)), ("importance", importance_figures(record))):
        for table, figure in of_tables.items():
            figures[f"{kind}.png" if len(record.tables) == 1 else f"{kind}-{table}.png"] = figure
    figures["curves.png"] = curves_figure(record)
    figures["finalists.png"] = finalists_figure(record)
    figures["limits.png"] = limits_figure(record)
    for name, drawing in figures.items():
        if drawing is not None:
            save_figure(drawing, run / name, record.title)
            drawn.append(run / name)
    return drawn
