"""The supernet of the DARTS space as AutoDL-Projects has it, so that its checkpoints load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.darts.genotype import DARTS_OPS, EDGES, INPUTS
from vpdarts_fast.spaces.darts.operations import FactorizedReduce
from vpdarts_fast.spaces.darts.supernet import DartsSupernet

AUTODL_OPS = (
    "none",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
)
"""The order of its columns; it calls the separable convolutions `dua_sepc`, the dilated ones `dil_sepc`."""

LAYERS_OF_STAGE = 4
"""Layers of one stage of a separable convolution."""


class AutodlSupernet(DartsSupernet):
    """The DARTS supernet of AutoDL-Projects (`NASNetworkDARTS`, `NASNetworkGDAS`, `NASNetworkSETN`).

    It differs from `DartsSupernet` in two things: there are no batch norms behind pools, and batch norm and
    ReLU stand before the classifier. Its three stages of N cells are 3 N layers here. Operations, rows and
    columns of the weights, and names of parameters are those of `DartsSupernet`; `load_public_checkpoint`
    translates. Convolutions of that code that have biases stand before batch norms, which take the biases
    away again; they are subtracted from the norms' running means, and the network computes the same.
    """

    normed_pools: ClassVar[bool] = False

    def __init__(self, channels: int = 16, layers: int = 6, num_classes: int = 10) -> None:
        super().__init__(channels, layers, num_classes)
        self.lastact = nn.Sequential(nn.BatchNorm2d(self.classifier.in_features), nn.ReLU())

    def classify(self, x: Tensor) -> Tensor:
        """Maps the last cell's output [N, C', H, W] to logits [N, classes]."""
        return super().classify(self.lastact(x))

    def _check_code(self, tensors: Mapping[str, Any]) -> None:
        if not any(".edges." in name for name in tensors):
            raise UserError(
                "the checkpoint is of no search network of AutoDL-Projects, in which the names of operations "
                "hold `.edges.`: load it into vpdarts_fast.spaces.darts.DartsSupernet"
            )

    def _public_entries(self) -> dict[str, Tensor]:
        state = self.state_dict()
        biases = {
            f"{public_name(conv)}.bias": state[f"{conv}.weight"][:, 0, 0, 0]
            for convs in self._convs_of_norms().values()
            for conv in convs
        }
        return {public_name(name): tensor for name, tensor in state.items()} | biases

    def _own_entries(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {public_name(name): name for name in self.state_dict()}
        own = {names[public]: tensor for public, tensor in tensors.items() if public in names}
        for norm, convs in self._convs_of_norms().items():
            biases = [tensors[f"{public_name(conv)}.bias"] for conv in convs]
            own[f"{norm}.running_mean"] = own[f"{norm}.running_mean"] - torch.cat(biases)
        return own

    def _own_columns(self, alpha: Tensor) -> Tensor:
        return alpha[:, [AUTODL_OPS.index(op) for op in DARTS_OPS]]

    def _convs_of_norms(self) -> dict[str, tuple[str, ...]]:
        """Of each batch norm of the cells, the convolutions that give its channels."""
        found: dict[str, tuple[str, ...]] = {}
        for name, module in self.cells.named_modules(prefix="cells"):
            if isinstance(module, FactorizedReduce):
                found[f"{name}.bn"] = f"{name}.conv_1", f"{name}.conv_2"
            elif isinstance(module, nn.Sequential):
                for (before, conv), (after, norm) in pairwise(module.named_children()):
                    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                        found[f"{name}.{after}"] = (f"{name}.{before}",)
        return found


def public_name(name: str) -> str:
    """What AutoDL-Projects calls an entry of the state dict."""
    name = re.sub(r"\.conv_([12])\b", lambda match: f".convs.{int(match[1]) - 1}", name)
    parts = re.fullmatch(r"(cells\.\d+)\._ops\.(\d+)\._ops\.(\d+)\.(.*)", name)
    if parts is None:
        return name
    cell, edge, column, rest = parts.groups()
    source, node = EDGES[int(edge)]
    op = DARTS_OPS[int(column)]
    layer = re.fullmatch(r"op\.(\d+)(.*)", rest)
    if op.startswith("sep_conv") and layer is not None:
        stage, place = divmod(int(layer[1]), LAYERS_OF_STAGE)
        rest = f"op_{'ab'[stage]}.op.{place}{layer[2]}"
    return f"{cell}.edges.{node - INPUTS}<-{source}._ops.{AUTODL_OPS.index(op)}.{rest}"
