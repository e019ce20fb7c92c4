"""Writes what a search reports into TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.cell import cell_figure
from vpdarts_fast.report.run import Array, LostAccuracy
from vpdarts_fast.report.run_files import parse_epoch, parse_result
from vpdarts_fast.report.style import op_colours
from vpdarts_fast.spaces.space import AlphaTable


def require_tensorboard() -> Any:
    """The class that writes event files; `UserError` unless the package `tensorboard` is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"a TensorBoard log needs the package tensorboard ({error}); "
            "install it with: pip install 'vpdarts-fast[tensorboard]', or search with --no-tensorboard"
        ) from error
    return SummaryWriter


class TensorBoardLog:
    """An event file that grows with the search; close it at the end.

    Scalars, one step per epoch: `loss/*` and `accuracy/*` of `weights`, `alpha` and `leave_one_out_base`,
    `learning_rate`, `decay`, `seconds/*`, `benchmark/*`, and per edge and op `alpha/0-1/nor_conv_3x3` and
    `importance/0-1/nor_conv_3x3` (percentage points of accuracy lost without the op); where a space has
    several cell types, `alpha/normal/0-2/sep_conv_3x3`. The architecture is the text `architecture`; the
    result adds a picture `cell` of its cells. Values that the search does not have are left out.

    Args:
        folder: made where it does not exist.
        tables: the names of alpha's rows and columns.
        first_step: the epoch that comes first; a resumed search repeats the later ones, and TensorBoard then
            hides what an earlier event file says of them.

    Raises:
        UserError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path, tables: Sequence[AlphaTable], *, first_step: int = 0) -> None:
        self._writer: Any = require_tensorboard()(str(folder), purge_step=first_step)
        self._tables = tuple(tables)
        self._next_step = first_step

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Adds one line of `metrics.jsonl`.

        Raises:
            KeyError: an entry is missing.
            TypeError: an entry is of another type.
            ValueError: an entry is of another form or out of range.
        """
        epoch = parse_epoch(metrics, self._tables)
        step = epoch.number
        self._next_step = step + 1
        self._add_scalar("learning_rate", metrics["learning_rate"], step)
        self._add_scalar("decay", metrics["decay"], step)
        self._add_scalar("loss/weights", epoch.weights_loss, step)
        self._add_scalar("loss/alpha", epoch.alpha_loss, step)
        self._add_scalar("accuracy/weights", epoch.weights_accuracy, step)
        self._add_scalar("accuracy/alpha", epoch.alpha_accuracy, step)
        self._add_table("alpha", epoch.alpha, step)
        for name, value in epoch.watched.items():
            self._add_scalar(f"watched/{name}", value, step)
        for part, seconds in metrics["seconds"].items():
            self._add_scalar(f"seconds/{part}", seconds, step)
        self._add_choice(str(epoch.genotype or "none yet"), epoch.importance, epoch.benchmark, step)

    def add_result(self, result: Mapping[str, Any]) -> None:
        """Adds `result.json`, one step behind the last epoch.

        Raises:
            KeyError: an entry is missing.
            TypeError: an entry is of another type.
            ValueError: an entry is of another form or out of range.
        """
        final = parse_result(result, self._tables)
        self._add_choice(str(final.genotype), final.importance, final.benchmark, self._next_step)
        cells = final.genotype.cells
        figure = cell_figure(cells, str(final.genotype), op_colours(self._tables, cells))
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        self._writer.add_image("cell", np.asarray(canvas.buffer_rgba()), self._next_step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is pending and closes the event file."""
        self._writer.close()

    def _add_choice(
        self, architecture: str, importance: LostAccuracy | None, benchmark: Mapping[str, float], step: int
    ) -> None:
        self._writer.add_text("architecture", f"`{architecture}`", step)
        if importance is not None:
            self._add_scalar("accuracy/leave_one_out_base", importance.base_accuracy, step)
            self._add_table("importance", importance.lost, step)
        for column, accuracy in benchmark.items():
            self._add_scalar(f"benchmark/{column}", accuracy, step)

    def _add_table(self, name: str, table: Array, step: int) -> None:
        """Adds [E, O] values under `name/edge/op` or, of several tables, `name/table/edge/op`."""
        rows = iter(table)
        for cell_type in self._tables:
            prefix = name if len(self._tables) == 1 else f"{name}/{cell_type.name}"
            for edge, ops in zip(cell_type.edges, cell_type.ops, strict=True):
                for op, value in zip(ops, next(rows), strict=False):
                    self._add_scalar(f"{prefix}/{edge.replace('->', '-')}/{op}", value, step)

    def _add_scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and np.isfinite(value):
            self._writer.add_scalar(tag, value, step)
