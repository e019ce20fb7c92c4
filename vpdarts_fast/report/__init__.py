"""Pictures and TensorBoard logs of a search, drawn from what the search writes."""

from vpdarts_fast.report.cell import draw_cell
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.tensorboard import TensorBoardLog, require_tensorboard

__all__ = ["TensorBoardLog", "draw_cell", "draw_pictures", "require_tensorboard"]
