"""A found cell from scratch: `python -m vpdarts_fast.train` trains its network, `load` loads that."""

from vpdarts_fast.train.exporting import export
from vpdarts_fast.train.loading import Prediction, TrainedNetwork, load

__all__ = ["Prediction", "TrainedNetwork", "export", "load"]
