"""Image data sets as uint8 tensors in memory, and normalised, augmented batches made from them."""

from vpdarts_fast.data.batches import ImageSet, epoch_order, split_halves
from vpdarts_fast.data.images import Augmentation, ImageData
from vpdarts_fast.data.sources import DATASETS, load

__all__ = ["DATASETS", "Augmentation", "ImageData", "ImageSet", "epoch_order", "load", "split_halves"]
