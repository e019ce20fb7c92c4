"""What supernet and found networks of the DARTS space have in common: all but what is between the nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.precision import wide, without_autocast
from vpdarts_fast.spaces.blocks import ReLUConvBN
from vpdarts_fast.spaces.darts.genotype import INPUTS, NODES
from vpdarts_fast.spaces.darts.operations import FactorizedReduce
from vpdarts_fast.spaces.stems import Stem, make_stem

STEM_MULTIPLIER = 3


@dataclass(frozen=True)
class Place:
    """Where in a network a cell is.

    Attributes:
        channels_before: of the outputs of the cell before the last one, and of the last one.
        channels: of each node of the cell; its output has four times as many.
        reduction: whether it halves the image.
        halves_first: whether the first of its inputs is twice as large as the second.
    """

    channels_before: tuple[int, int]
    channels: int
    reduction: bool
    halves_first: bool

    def stride(self, source: int) -> int:
        """The stride of operations from this source: 2 from an input of a reduction cell, else 1."""
        return 2 if self.reduction and source < INPUTS else 1


class CellInputs(nn.Module):
    """The part of a cell that brings both inputs to its channels and to one size."""

    def __init__(self, place: Place, affine: bool) -> None:
        super().__init__()
        self.reduction = place.reduction
        first, second = place.channels_before
        self.preprocess0 = (
            FactorizedReduce(first, place.channels, affine)
            if place.halves_first
            else ReLUConvBN(first, place.channels, 1, 1, affine)
        )
        self.preprocess1 = ReLUConvBN(second, place.channels, 1, 1, affine)

    def states(self, before_last: Tensor, last: Tensor) -> list[Tensor]:
        """Maps the outputs of two cells to a list of two tensors [N, C, H, W], which the nodes follow."""
        return [self.preprocess0(before_last), self.preprocess1(last)]


class Skeleton(nn.Module):
    """Stem, cells, global average pool, classifier; a third and two thirds down, cells halve the image.

    Args:
        channels: C of the first cells.
        layers: how many cells.
        num_classes: of the classifier.
        make_cell: place -> a cell, whose output is [N, 4 C, H, W].
        stem: the first layers (`vpdarts_fast.spaces.stems`).

    Raises:
        UserError: a size out of bounds (`vpdarts_fast.bounds`).
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        num_classes: int,
        make_cell: Callable[[Place], nn.Module],
        stem: Stem = "plain",
    ) -> None:
        super().__init__()
        check_bound("channels", channels)
        check_bound("layers", layers)
        check_bound("num_classes", num_classes)
        self.channels, self.layers, self.num_classes = channels, layers, num_classes
        width = STEM_MULTIPLIER * channels
        self.stem, self.stem_kind = make_stem(width, stem), stem
        self.cells = nn.ModuleList()
        before, halves_first = (width, width), False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(make_cell(Place(before, channels, reduction, halves_first)))
            before, halves_first = (before[1], len(NODES) * channels), reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before[1], num_classes)

    def check_images(self, images: Tensor) -> None:
        """Raises `UserError` unless images are [N, 3, H, W]."""
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 1:
            raise UserError(f"images must have shape [N, 3, H, W]; got {list(images.shape)}")

    def classify(self, x: Tensor) -> Tensor:
        """Maps the last cell's output [N, C', H, W] to logits [N, classes], of the parameters' dtype."""
        pooled = self.global_pooling(wide(x)).flatten(1)
        with without_autocast(x):  # half precision would make too many logits equal
            logits: Tensor = self.classifier(pooled.to(self.classifier.weight.dtype))
        return logits

    def sizes(self) -> str:
        """Says how large the network is, for messages."""
        return f"channels={self.channels}, layers={self.layers}, num_classes={self.num_classes}"
