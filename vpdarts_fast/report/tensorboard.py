"""Writes what a search reports into TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.cell import cell_figure
from vpdarts_fast.report.run_files import Array, Importance, parse_epoch, parse_result
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS


def require_tensorboard() -> Any:
    """The class that writes event files; `UserError` unless the package ``tensorboard`` is installed."""
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

    Scalars, one step per epoch: ``loss/*`` and ``accuracy/*`` of ``weights``, ``alpha`` and
    ``leave_one_out_base``, ``learning_rate``, ``decay``, ``seconds/*``, ``benchmark/*``, and per
    edge and op ``alpha/0-1/nor_conv_3x3`` and ``importance/0-1/nor_conv_3x3`` (percentage points of
    accuracy lost without the op). The architecture is the text ``architecture``; the result adds a
    picture of the ``cell``. Values that the search does not have are left out.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        """Opens an event file in the folder, which is made where it does not exist.

        Args:
            first_step: the epoch that comes first; a resumed search repeats the later ones, and
                TensorBoard then hides what an earlier event file says of them.

        Raises:
            UserError: the package ``tensorboard`` is not installed.
        """
        self._writer: Any = require_tensorboard()(str(folder), purge_step=first_step)
        self._next_step = first_step

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Adds one line of ``metrics.jsonl``.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or malformed.
        """
        epoch = parse_epoch(metrics)
        step = epoch.number
        self._next_step = step + 1
        self._add_scalar("learning_rate", metrics["learning_rate"], step)
        self._add_scalar("decay", metrics["decay"], step)
        self._add_scalar("loss/weights", epoch.weights_loss, step)
        self._add_scalar("loss/alpha", epoch.alpha_loss, step)
        self._add_scalar("accuracy/weights", epoch.weights_accuracy, step)
        self._add_scalar("accuracy/alpha", epoch.alpha_accuracy, step)
        self._add_table("alpha", epoch.alpha, step)
        for part, seconds in metrics["seconds"].items():
            self._add_scalar(f"seconds/{part}", seconds, step)
        self._add_choice(str(epoch.genotype or "none yet"), epoch.importance, epoch.benchmark, step)

    def add_result(self, result: Mapping[str, Any]) -> None:
        """Adds ``result.json``, one step behind the last epoch.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or malformed.
        """
        final = parse_result(result)
        self._add_choice(str(final.genotype), final.importance, final.benchmark, self._next_step)
        canvas: Any = FigureCanvasAgg(cell_figure(final.genotype, str(final.genotype)))
        canvas.draw()
        self._writer.add_image("cell", np.asarray(canvas.buffer_rgba()), self._next_step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is pending and closes the event file."""
        self._writer.close()

    def _add_choice(
        self, architecture: str, importance: Importance | None, benchmark: Mapping[str, float], step: int
    ) -> None:
        self._writer.add_text("architecture", f"`{architecture}`", step)
        if importance is not None:
            self._add_scalar("accuracy/leave_one_out_base", importance.base_accuracy, step)
            self._add_table("importance", importance.lost, step)
        for column, accuracy in benchmark.items():
            self._add_scalar(f"benchmark/{column}", accuracy, step)

    def _add_table(self, name: str, table: Array, step: int) -> None:
        """Adds [6, 5] values under ``name/source-target/op``."""
        for (source, target), row in zip(EDGES, table, strict=True):
            for op, value in zip(OPS, row, strict=True):
                self._add_scalar(f"{name}/{source}-{target}/{op}", value, step)

    def _add_scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and np.isfinite(value):
            self._writer.add_scalar(tag, value, step)
