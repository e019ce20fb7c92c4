"""The network of a found cell of the DARTS space, with the parameter names of public DARTS code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.checkpoints import check_fits, entries
from vpdarts_fast.spaces.darts.genotype import NODES, Genotype, by_node
from vpdarts_fast.spaces.darts.operations import OPERATIONS
from vpdarts_fast.spaces.darts.skeleton import CellInputs, Place, Skeleton
from vpdarts_fast.spaces.stems import REDUCTIONS, Stem

AUXILIARY = "auxiliary_head."
"""What the names of its parameters begin with."""

LEAST_SIZE = 29
"""Height and width of images, of which both reductions leave the 8 pixels that the auxiliary head needs."""


class FoundCell(CellInputs):
    """A cell whose nodes are sums of two operations each."""

    def __init__(self, genotype: Genotype, place: Place) -> None:
        super().__init__(place, affine=True)
        pairs = genotype.reduce if place.reduction else genotype.normal
        self._ops = nn.ModuleList(
            OPERATIONS[op](place.channels, place.stride(source), True) for op, source in pairs
        )
        self._sources = {node: [source for _, source in both] for node, both in by_node(pairs).items()}
        self._names = [
            f"{source}->{node} {op}" for node, both in by_node(pairs).items() for op, source in both
        ]

    def forward(self, before_last: Tensor, last: Tensor, drop_path_prob: float) -> Tensor:
        """Computes the cell's output [N, 4 C, H, W] from those of the two cells before it.

        Args:
            before_last: the output of the cell before the last one.
            last: the output of the last cell.
            drop_path_prob: with which probability an operation's output is dropped for an image in training.
        """
        states = self.states(before_last, last)
        ops = iter(self._ops)
        for node in NODES:
            terms = []
            for source, op in zip(self._sources[node], ops, strict=False):
                term = op(states[source])
                if self.training and drop_path_prob > 0 and not isinstance(op, nn.Identity):
                    term = drop_path(term, drop_path_prob)
                terms.append(term)
            states.append(terms[0] + terms[1])
        return torch.cat(states[NODES.start :], dim=1)

    def operations(self) -> list[nn.Module]:
        """Lists the operations, as the genotype has them."""
        return list(self._ops)

    def place_of(self, name: str) -> str:
        """Replaces an operation's number, in a name within the cell, by its edge and what it is."""
        first, _, rest = name.partition(".")
        number, _, layer = rest.partition(".")
        return f"{self._names[int(number)]} {layer}" if first == "_ops" else name


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Drops some of the images of `x` [N, C, H, W] at random.

    Returns:
        Zeros for each image with the given probability, else the image divided by the chance of being kept.
    """
    kept = 1 - probability
    return x * (torch.empty_like(x[:, :1, :1, :1]).bernoulli_(kept) / kept)


class AuxiliaryHead(nn.Module):
    """A second classifier, of the output of the second reduction cell: [N, C, 8, 8] -> [N, classes].

    Of larger images its last features are averaged.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` [N, C, H, W], whose images are 8 x 8 or larger, to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class DartsNetwork(Skeleton):
    """The network of a genotype, batch norms affine, ready to be trained from scratch.

    `forward` returns the logits, in training too; a trainer that wants those of the auxiliary head calls
    `forward_with_auxiliary`, and weighs their loss.

    Args:
        genotype: the choice; the order of a node's two operations is that of its parameters' names.
        channels: C of the first cells; the paper uses 36 for CIFAR-10.
        layers: how many cells; the paper uses 20.
        num_classes: of the classifier.
        auxiliary: have an auxiliary head.
        drop_path_prob: see the attribute.
        stem: the first layers (`vpdarts_fast.spaces.stems`).

    Attributes:
        drop_path_prob: the probability with which an operation's output is dropped for an image while
            training, unless the operation is the identity. Trainers change it from epoch to epoch.

    Raises:
        UserError: a size or probability out of bounds (`vpdarts_fast.bounds`).
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        *,
        auxiliary: bool = True,
        drop_path_prob: float = 0.0,
        stem: Stem = "plain",
    ) -> None:
        check_bound("drop_path", drop_path_prob, "drop_path_prob")
        super().__init__(channels, layers, num_classes, lambda place: FoundCell(genotype, place), stem)
        self.genotype = genotype
        self.drop_path_prob = drop_path_prob
        width = 4 * channels * len(NODES)  # of all cells from the second reduction on
        self.auxiliary_head = AuxiliaryHead(width, num_classes) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to the classifier's logits [N, classes].

        Raises:
            UserError: the images have another shape.
        """
        return self.classify(self._outputs(images)[-1])

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images [N, 3, H, W] to the classifier's and the auxiliary head's logits [N, classes].

        Raises:
            UserError: there is no auxiliary head, or images are smaller than 29 x 29, of which too little is
                left for it.
        """
        head = self.auxiliary_head
        if head is None:
            raise UserError("the network was built without an auxiliary head: build it with auxiliary=True")
        least = 1 + (LEAST_SIZE - 1) * REDUCTIONS[self.stem_kind]
        if min(images.shape[2:]) < least:
            raise UserError(
                f"the auxiliary head needs images of at least {least} x {least}; got "
                f"{list(images.shape[2:])}: build the network with auxiliary=False"
            )
        outputs = self._outputs(images)
        return self.classify(outputs[-1]), head(outputs[2 * self.layers // 3])

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Computes the outputs of all cells."""
        self.check_images(images)
        before_last = last = self.stem(images)
        outputs = []
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, self.drop_path_prob)
            outputs.append(last)
        return outputs

    def load_public_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Loads the state dict of a public DARTS evaluation network of this genotype.

        A ``module.`` prefix is dropped, and so is an auxiliary head if this network has none.

        Raises:
            UserError: keys, shapes or dtypes that do not fit this network, which is left as it was.
        """
        tensors = entries(state)
        if self.auxiliary_head is None:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(AUXILIARY)}
        check_fits(self.state_dict(), tensors, "network", self.sizes())
        self.load_state_dict(tensors)

    def draw_by_place(self, number: int) -> None:
        """Draws all weights anew, each as a function of the number and of its place.

        A place is an operation on an edge of a cell, so that networks of different genotypes begin alike
        where they share an operation. The weights have to be on the CPU.
        """
        with torch.random.fork_rng(devices=[]):
            for name, layer in self.named_modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    digest = hashlib.sha256(f"{number} {self._place_of(name)}".encode()).digest()
                    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                    layer.reset_parameters()

    def _place_of(self, name: str) -> str:
        first, _, rest = name.partition(".")
        if first != "cells":
            return name
        number, _, inside = rest.partition(".")
        cell = self.cells[int(number)]
        assert isinstance(cell, FoundCell)
        return f"{number} {cell.place_of(inside)}"
