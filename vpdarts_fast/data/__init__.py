"""Images as uint8 tensors in memory or as data sets of PyTorch, and batches made from them."""

from vpdarts_fast.data.batches import ImageSet, epoch_order
from vpdarts_fast.data.datasets import DatasetImages
from vpdarts_fast.data.images import ImageData, split_halves
from vpdarts_fast.data.mapped.images import MappedImages
from vpdarts_fast.data.options import ImageOptions
from vpdarts_fast.data.pixels import Augmentation
from vpdarts_fast.data.protocol import ImageHalf, SearchImages
from vpdarts_fast.data.sources import DATASETS, GIVEN, load

__all__ = [
    "DATASETS",
    "GIVEN",
    "Augmentation",
    "DatasetImages",
    "ImageData",
    "ImageHalf",
    "ImageOptions",
    "ImageSet",
    "MappedImages",
    "SearchImages",
    "epoch_order",
    "load",
    "split_halves",
]
