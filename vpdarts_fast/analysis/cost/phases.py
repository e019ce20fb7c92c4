"""The phases of a search, run and counted: plain, as eager PyTorch runs it, and fused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

from vpdarts_fast.analysis.cost.counting import DEVICE, counting
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.evaluation.leave_one_out import Batch, leave_one_out
from vpdarts_fast.runtime.graphs import WARM_UP, Captured, recorder_for
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.spaces.blocks import MixedOp, SkipConnect
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet


@dataclass(frozen=True)
class Setting:
    """What is searched, and how.

    Attributes:
        config: the search's settings.
        images: in each half of the training images.
        size: height and width of an image.
        classes: of the data.
        dtype: of activations and of the weights of products.
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
        """How many steps each of the two phases of an epoch takes: one a batch of its half of the images."""
        return math.ceil(self.images / self.config.optimisers.batch_size)

    @property
    def evaluation_images(self) -> int:
        """How many images a leave-one-out evaluation looks at: at least one."""
        return max(1, round(self.images * self.config.search.validation_proportion))

    @property
    def evaluation_batches(self) -> int:
        """How many batches those images make."""
        return math.ceil(self.evaluation_images / self.config.optimisers.evaluation_batch_size)

    @property
    def evaluations(self) -> int:
        """Leave-one-out evaluations of a search: one before each pruning epoch, and the last."""
        return self.config.alpha_epochs + 1

    def batch(self, images: int) -> Batch:
        """A batch of so many images, without data: images [N, 3, H, W] and labels [N] int64."""
        inputs = torch.empty(images, 3, self.size, self.size, device=DEVICE)
        return inputs, torch.zeros(images, dtype=torch.int64, device=DEVICE)


class Dropout(nn.Module):
    """Dropout behind a skip connection as PyTorch has it on a GPU: one kernel draws and scales.

    The plain modules draw from a seed, so that fused cells can draw the same, which costs a dozen kernels
    that nobody else's network starts.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Drops values of `x`, of any shape, while training; else returns it as it is."""
        return torch.native_dropout(x, self.dropout, True)[0] if self.training and self.dropout else x


def _state(setting: Setting, fused: bool) -> SearchState:
    with DEVICE, mock.patch.object(nn.Module, "to", lambda module, device: module):  # made there already
        state = SearchState(setting.config.replaced(fused=fused), setting.classes, DEVICE)
    if not fused:
        for edge in (module for module in state.supernet.modules() if isinstance(module, MixedOp)):
            assert isinstance(edge[1], SkipConnect)
            edge[1] = Dropout(edge[1].dropout)
    if setting.dtype != torch.float32:  # of all but images, batch norms, alpha and the classifier
        for module in state.supernet.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.to(setting.dtype)
        assert isinstance(state.supernet, Supernet)
        state.supernet.stem[0].register_forward_pre_hook(lambda _, inputs: inputs[0].to(setting.dtype))
        state.supernet.classifier.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
    return state


def training_steps(setting: Setting, fused: bool) -> tuple[Tally, Tally]:
    """Counts a step of each phase, weights and alpha.

    The steps before, which make the optimisers' state and record CUDA graphs, are not counted.
    """
    with counting(setting.shared_bytes, graphs=fused) as count:
        state, config = _state(setting, fused), setting.config
        batch = setting.batch(config.optimisers.batch_size)

        def weights(*batch: Tensor) -> None:
            images, labels = batch
            clip = config.optimisers.gradient_clip
            weights_step(state.supernet, state.alpha, (images, labels), state.weights_optimizer, clip)

        def alpha(*batch: Tensor) -> None:
            images, labels = batch
            alpha_step(state.supernet, state.alpha, state.alive, (images, labels), state.alpha_optimizer)

        steps = [Captured(step, recorder_for(DEVICE)) for step in (weights, alpha)]
        with count:
            marks = []
            for _ in range(WARM_UP + 2):
                for step in steps:
                    marks.append(count.tally.copy())
                    step(*batch)
        return marks[-1] - marks[-2], count.tally - marks[-1]


def evaluation(setting: Setting, fused: bool) -> Tally:
    """Counts leave-one-out over the evaluation's images, in batches as large as the largest.

    A few are run; those that follow are as the last, as the first calibrates and the next are recorded.
    """
    batches = setting.evaluation_batches
    images = math.ceil(setting.evaluation_images / batches)
    marks: list[Tally] = []
    with counting(setting.shared_bytes, graphs=fused) as count:
        supernet = _state(setting, fused).supernet
        run = min(batches, WARM_UP + 3 if fused else 2)
        with count:
            alpha = torch.full((len(EDGES), len(OPS)), 1 / len(OPS), device=DEVICE)
            batch = setting.batch(images)
            start = count.tally.copy()
            leave_one_out(
                supernet,
                [batch] * run,
                alpha,
                batch_norm=setting.config.search.batch_norm,
                batched=fused,
                on_batch=lambda _: marks.append(count.tally.copy()),
            )
        ran = count.tally - start
        return ran if batches == run else ran + (marks[-1] - marks[-2]) * (batches - run)
