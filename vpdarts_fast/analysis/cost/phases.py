"""The phases of a search, run and counted: plain, as eager PyTorch runs it, and fused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn

from vpdarts_fast.analysis.cost.counting import DEVICE, counting
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.leave_one_out import Batch, leave_one_out
from vpdarts_fast.nn import MixedOp, SkipConnect
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.spaces.genotype import EDGES, OPS


@dataclass(frozen=True)
class Setting:
    """What is searched, and how.

    Attributes:
        config: the search's settings.
        images: in each half of the training images.
        size: height and width of an image.
        classes: of the data.
        dtype: of activations and weights.
        shared_bytes: that a block may have on the GPU.
    """

    config: SearchConfig
    images: int
    size: int
    classes: int
    dtype: torch.dtype
    shared_bytes: int

    @property
    def steps(self) -> int:
        """Of each phase of an epoch."""
        return math.ceil(self.images / self.config.batch_size)

    @property
    def evaluation_images(self) -> int:
        return max(1, round(self.images * self.config.validation_proportion))

    @property
    def evaluation_batches(self) -> int:
        return math.ceil(self.evaluation_images / self.config.evaluation_batch_size)

    @property
    def evaluations(self) -> int:
        """Leave-one-out evaluations of a search: one before each pruning epoch, and the last."""
        return self.config.pruning_epochs + 1

    def batch(self, images: int) -> Batch:
        """Images [N, 3, H, W] and labels [N]."""
        inputs = torch.empty(images, 3, self.size, self.size, dtype=self.dtype, device=DEVICE)
        return inputs, torch.zeros(images, dtype=torch.int64, device=DEVICE)


class Dropout(nn.Module):
    """Behind a skip connection as PyTorch has it on a GPU: one kernel draws and scales.

    The plain modules draw from a seed, so that fused cells can draw the same, which costs a dozen kernels
    that nobody else's network starts.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.dropout, True)[0] if self.training and self.dropout else x


def _state(setting: Setting, fused: bool) -> SearchState:
    with DEVICE, mock.patch.object(nn.Module, "to", lambda module, device: module):  # made there already
        state = SearchState(replace(setting.config, fused=fused), setting.classes, DEVICE)
    if not fused:
        for edge in (module for module in state.supernet.modules() if isinstance(module, MixedOp)):
            assert isinstance(edge[1], SkipConnect)
            edge[1] = Dropout(edge[1].dropout)
    if setting.dtype != torch.float32:
        for tensor in (*state.supernet.parameters(), *state.supernet.buffers()):
            tensor.data = tensor.data.to(setting.dtype) if tensor.is_floating_point() else tensor.data
    return state


def training_steps(setting: Setting, fused: bool) -> tuple[Tally, Tally]:
    """A step of each phase, weights and alpha: the second one, as the first makes the optimisers' state."""
    with counting(setting.shared_bytes) as count:
        state, config = _state(setting, fused), setting.config
        batch = setting.batch(config.batch_size)
        with count:
            marks = []
            for _ in range(2):
                marks.append(count.tally.copy())
                weights_step(
                    state.supernet, state.alpha, batch, state.weights_optimizer, config.gradient_clip
                )
                marks.append(count.tally.copy())
                alpha_step(state.supernet, state.alpha, state.alive, batch, state.alpha_optimizer)
        return marks[3] - marks[2], count.tally - marks[3]


def evaluation(setting: Setting, fused: bool) -> Tally:
    """Leave-one-out over the evaluation's images, in batches as large as the largest.

    Two are run; those that follow are as the second, as the first calibrates.
    """
    batches = setting.evaluation_batches
    images = math.ceil(setting.evaluation_images / batches)
    marks: list[Tally] = []
    with counting(setting.shared_bytes) as count:
        supernet = _state(setting, fused).supernet
        with count:
            alpha = torch.full((len(EDGES), len(OPS)), setting.config.alpha_start, device=DEVICE)
            leave_one_out(
                supernet,
                (setting.batch(images) for _ in range(min(batches, 2))),
                alpha,
                batch_norm=setting.config.batch_norm,
                fused=fused,
                on_batch=lambda _: marks.append(count.tally.copy()),
                cuda_graphs=False,
            )
        return count.tally if batches == 1 else count.tally + (marks[1] - marks[0]) * (batches - 2)
