"""NAS-Bench-201: its supernet, and the network of a single architecture.

Skeleton (Dong and Yang, 2020): stem, N cells at C channels, residual block to 2C, N cells, residual
block to 4C, N cells, batch norm and ReLU, global average pool, linear classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import serving
from vpdarts_fast.bounds import check_bound
from vpdarts_fast.contract.transforms import in_transform
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.precision import autocasts, wide, without_autocast
from vpdarts_fast.spaces.blocks import (
    OPERATIONS,
    ReLUConvBN,
    ResidualBlock,
    SearchCell,
    edge_index,
    wants_gradients,
)
from vpdarts_fast.spaces.checkpoints import check_fits, entries
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS, Genotype
from vpdarts_fast.spaces.norms import kept_statistics
from vpdarts_fast.spaces.stems import Stem, behind_stem, make_stem


def pixels_of_last_stage(image_size: tuple[int, int], stem: Stem = "plain") -> int:
    """How many pixels are left of images of a height and width behind both residual blocks."""
    height, width = behind_stem(image_size, stem)
    return -(-height // 4) * -(-width // 4)


class Skeleton(nn.Module):
    """Everything of the network but what is inside a cell.

    Args:
        channels: C, of the first stage.
        cells_per_stage: N.
        num_classes: of the classifier.
        make_cell: channels -> a cell that keeps them.
        stem: the first layers (`vpdarts_fast.spaces.stems`).
    """

    def __init__(
        self,
        channels: int,
        cells_per_stage: int,
        num_classes: int,
        make_cell: Callable[[int], nn.Module],
        stem: Stem = "plain",
    ) -> None:
        super().__init__()
        check_bound("channels", channels)
        check_bound("cells_per_stage", cells_per_stage)
        check_bound("num_classes", num_classes)
        self.channels, self.cells_per_stage, self.num_classes = channels, cells_per_stage, num_classes
        self.stem, self.stem_kind = make_stem(channels, stem), stem
        self.cells = nn.ModuleList()
        for stage in range(3):
            width = channels * 2**stage
            if stage:
                self.cells.append(ResidualBlock(width // 2, width))
            self.cells.extend(make_cell(width) for _ in range(cells_per_stage))
        self.lastact = nn.Sequential(nn.BatchNorm2d(4 * channels), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * channels, num_classes)

    def check_images(self, images: Tensor) -> None:
        """Raises `UserError` unless images are [N, 3, H, W]."""
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 1:
            raise UserError(f"images must have shape [N, 3, H, W]; got {list(images.shape)}")

    def classify(self, x: Tensor) -> Tensor:
        """Maps the last cell's output [N, 4C, H, W] to logits [N, classes], of the parameters' dtype."""
        return self.classify_activated(self.lastact(x))

    def classify_activated(self, x: Tensor) -> Tensor:
        """Does what `classify` does behind its batch norm and ReLU, whose output [N, 4C, H, W] it takes."""
        pooled = self.global_pooling(wide(x)).flatten(1)
        with without_autocast(x):  # half precision would make too many logits equal
            logits: Tensor = self.classifier(pooled.to(self.classifier.weight.dtype))
        return logits


class Supernet(Skeleton):
    """The over-parameterised network that holds every operation on every edge.

    Alpha is not part of it: `forward` takes the table, so that one supernet serves any of them.

    Args:
        channels: C; the paper uses 16.
        cells_per_stage: N; the paper uses 5.
        num_classes: of the classifier.
        skip_dropout: probability of the dropout behind every skip connection while training.
        fused: train through the fused operations; the same function.
        backend: what serves those that it has (`vpdarts_fast.backends`); auto takes the best for each.
        stem: the first layers (`vpdarts_fast.spaces.stems`).

    Raises:
        UserError: a size or probability out of bounds (`vpdarts_fast.bounds`).
    """

    def __init__(
        self,
        channels: int = 16,
        cells_per_stage: int = 5,
        num_classes: int = 10,
        *,
        skip_dropout: float = 0.2,
        fused: bool = False,
        backend: str = "auto",
        stem: Stem = "plain",
    ) -> None:
        check_bound("skip_dropout", skip_dropout)
        super().__init__(
            channels,
            cells_per_stage,
            num_classes,
            lambda width: SearchCell(width, OPS, NUM_NODES, skip_dropout),
            stem,
        )
        self.backend = backend
        for cell in self.cells:
            if isinstance(cell, (SearchCell, ResidualBlock)):
                cell.fused, cell.backend = fused, backend

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within, every part runs module by module, whether it is fused or not."""
        parts = [cell for cell in self.cells if isinstance(cell, (SearchCell, ResidualBlock))]
        before = [part.fused for part in parts]
        try:
            for part in parts:
                part.fused = False
            yield
        finally:
            for part, fused in zip(parts, before, strict=True):
                part.fused = fused

    def search_cells(self) -> list[SearchCell]:
        """Lists the cells that are searched, without the residual blocks between the stages."""
        return [cell for cell in self.cells if isinstance(cell, SearchCell)]

    def new_alpha(self) -> Tensor:
        """Makes a table [E, O] of 1/O, where the search starts, on the supernet's device."""
        weight = self.classifier.weight
        return torch.full((len(EDGES), len(OPS)), 1 / len(OPS), dtype=weight.dtype, device=weight.device)

    def forward(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes], with `alpha` [E, O] for the ops of all cells.

        Raises:
            UserError: a tensor of another shape.
        """
        self.check_images(images)
        check_alpha(alpha)
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, alpha) if isinstance(cell, SearchCell) else cell(x)
        return self.classify(x)

    def load_public_checkpoint(self, state: Mapping[str, Any]) -> Tensor | None:
        """Loads the state dict of a public NAS-Bench-201 search network and returns its alpha, if it has one.

        A ``module.`` prefix is dropped; the architecture parameters may be called ``arch_parameters``,
        ``_arch_parameters`` or ``alphas``.

        Raises:
            UserError: keys, shapes or dtypes that do not fit this supernet, which is left as it was.
        """
        tensors = entries(state)
        alphas = [key for key in ("arch_parameters", "_arch_parameters", "alphas") if key in tensors]
        expected = self.state_dict() | dict.fromkeys(alphas, self.new_alpha())
        sizes = f"channels={self.channels}, cells_per_stage={self.cells_per_stage}"
        check_fits(expected, tensors, "supernet", f"{sizes}, num_classes={self.num_classes}")
        found = [tensors.pop(key) for key in alphas]
        self.load_state_dict(tensors)
        return found[0].detach().clone() if found else None


def check_alpha(alpha: Tensor) -> None:
    """Raises `UserError` unless alpha is a floating table [E, O]."""
    expected = (len(EDGES), len(OPS))
    if tuple(alpha.shape) != expected or not alpha.is_floating_point():
        raise UserError(
            f"alpha must be a floating-point table [edges, ops] = {list(expected)}; "
            f"got {list(alpha.shape)} of {alpha.dtype}"
        )


KERNELS = (1, 3)
"""Sizes of the convolutions, in the order in which ops take their weights and statistics."""


class DiscreteCell(nn.Module):
    """A cell with one operation per edge; names as in the public networks that train an architecture.

    Attributes:
        fused: where the native kernels serve them, run on `vpdarts_fast.ops`; the same function. In training
            the 3x3 convolutions that leave a node are one call of ``relu_conv``, and 1x1 convolutions calls
            of ``relu_pointwise``; an evaluation without gradients is a ``masked_cell`` of one-hot alphas,
            whose convolutions have the scale of their batch norm in them.
    """

    def __init__(self, genotype: Genotype, channels: int) -> None:
        super().__init__()
        self.fused = False
        self.layers = nn.ModuleList(OPERATIONS[op](channels, 0.0, True) for op in genotype.ops)
        self._choices = list(genotype.choices)
        self._leaving = [
            [edge for edge, (source, _) in enumerate(EDGES) if source == node] for node in range(NUM_NODES)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Computes the last node of `x` [N, C, H, W], of the same shape."""
        fixed = not self.training and not wants_gradients(x, *self.parameters())
        if self.fused and fixed and self._is_served("masked_cell", x):
            return self._evaluated(x)
        terms = dict(self._terms(0, x))
        node = x
        for i in range(1, NUM_NODES):
            node = sum((terms[edge_index(j, i)] for j in range(1, i)), start=terms[edge_index(0, i)])
            terms |= self._terms(i, node)
        return node

    def _terms(self, node: int, x: Tensor) -> dict[int, Tensor]:
        """What the edges that leave a node make of its value [N, C, H, W], by their numbers."""
        layers = {edge: self.layers[edge] for edge in self._leaving[node]}
        if not (self.fused and self.training and self._is_served("relu_conv", x)):
            return {edge: layer(x) for edge, layer in layers.items()}
        found = {edge: layer(x) for edge, layer in layers.items() if not isinstance(layer, ReLUConvBN)}
        convs = {edge: layer for edge, layer in layers.items() if isinstance(layer, ReLUConvBN)}
        large = {edge: conv for edge, conv in convs.items() if conv.conv.kernel_size == (3, 3)}
        for edge, conv in convs.items():
            if edge not in large:
                found[edge] = conv.norm(ops.relu_pointwise(x, [conv.conv.weight]))
        if large:
            weights = torch.stack([conv.conv.weight for conv in large.values()])
            unused = weights.new_zeros(*weights.shape[:3], 1, 1)
            _, raw = ops.relu_conv(x, unused, weights)
            found |= {edge: large[edge].norm(out) for edge, out in zip(large, raw, strict=True)}
        return found

    def _evaluated(self, x: Tensor) -> Tensor:
        """The cell with the statistics that its batch norms keep, scale and shift taken into both."""
        edges, channels = len(self.layers), x.shape[1]
        weights = {size: x.new_zeros(edges, channels, channels, size, size) for size in KERNELS}
        mean, variance = x.new_zeros(edges, 2, channels), x.new_ones(edges, 2, channels)
        eps = 1e-5  # without a convolution any will do
        for edge, layer in enumerate(self.layers):
            if not isinstance(layer, ReLUConvBN):
                continue
            norm, size = layer.norm, layer.conv.kernel_size[0]
            (kept_mean,), (kept_variance,) = kept_statistics([norm])
            eps, column = norm.eps, KERNELS.index(size)
            weights[size][edge] = layer.conv.weight * norm.weight[:, None, None, None]
            mean[edge, column] = kept_mean * norm.weight - norm.bias * torch.sqrt(kept_variance + eps)
            variance[edge, column] = kept_variance
        alpha = x.new_zeros(1, edges, len(OPS))
        alpha[0, range(edges), self._choices] = 1
        weight_1x1, weight_3x3 = weights.values()
        out = ops.masked_cell(x.unsqueeze(0), weight_1x1, weight_3x3, mean, variance, alpha, eps)
        return out.squeeze(0)

    def _is_served(self, op: str, x: Tensor) -> bool:
        """Whether kernels compute it that are faster than the modules: those of the native extension."""
        if in_transform() or autocasts(x):
            return False
        return serving(op, [x]).name == "cpu"


class DiscreteNetwork(Skeleton):
    """The network of one architecture, batch norms affine, ready to be trained from scratch.

    Args:
        genotype: the architecture.
        channels: C, of the first stage.
        cells_per_stage: N.
        num_classes: of the classifier.
        stem: the first layers (`vpdarts_fast.spaces.stems`).
        fused: train on the fused ops where they are faster; the same function, parameters and names.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 16,
        cells_per_stage: int = 5,
        num_classes: int = 10,
        stem: Stem = "plain",
        *,
        fused: bool = False,
    ) -> None:
        super().__init__(
            channels, cells_per_stage, num_classes, lambda width: DiscreteCell(genotype, width), stem
        )
        self.genotype = genotype
        for cell in self.cells:
            if isinstance(cell, (DiscreteCell, ResidualBlock)):
                cell.fused = fused

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes].

        Raises:
            UserError: the images have another shape.
        """
        self.check_images(images)
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x)
        return self.classify(x)


def build_network(
    architecture: Genotype | str | int,
    channels: int = 16,
    cells_per_stage: int = 5,
    num_classes: int = 10,
    stem: Stem = "plain",
) -> DiscreteNetwork:
    """Builds the network of an architecture, given as genotype, string or `Genotype.index`.

    Raises:
        UserError: there is no such architecture, or a size is out of bounds.
    """
    if isinstance(architecture, str):
        architecture = Genotype.from_string(architecture)
    elif isinstance(architecture, int):
        architecture = Genotype.from_index(architecture)
    return DiscreteNetwork(architecture, channels, cells_per_stage, num_classes, stem)
