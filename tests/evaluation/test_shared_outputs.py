"""What variants of a model share is computed once, and layers between mixed operations move nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from perturbation_cases import accelerated, assert_all_same, batches, trained
from torch import Tensor, nn
from whole_supernets import DartsSupernet

from vpdarts_fast import leave_one_out
from vpdarts_fast.evaluation.perturbation.layers import ChannelsStayLast

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS, IMAGES, CHANNELS = 3, 4, 6


def images(*leading: int) -> Tensor:
    """Channels last."""
    torch.manual_seed(0)
    return torch.randn(*leading, 5, 7, CHANNELS, dtype=torch.float64).movedim(-1, -3)


def lie_channels_last(out: Tensor) -> bool:
    return out.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["fixed", "batch"])
@pytest.mark.parametrize("own", [False, True], ids=["shared statistics", "own statistics"])
def test_batch_norms(affine: bool, training: bool, own: bool) -> None:
    if training and own:
        return  # statistics of the batch are always a variant's own
    x = images(VARIANTS, IMAGES)
    parts = [torch.randn(CHANNELS, dtype=torch.float64) if affine else None for _ in range(2)]
    shape = (VARIANTS, CHANNELS) if own else (CHANNELS,)
    mean, variance = torch.randn(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.5

    def norm(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        statistics = (None, None) if training else (mean, variance)
        return F.batch_norm(x, *statistics, *parts, training, 0.1, 1e-3)

    with torch.no_grad(), ChannelsStayLast():
        out = torch.vmap(norm, (0, *[0 if own else None] * 2))(x, mean, variance)
    means, variances = mean.expand(VARIANTS, CHANNELS), variance.expand(VARIANTS, CHANNELS)
    expected = torch.stack([norm(*each) for each in zip(x, means, variances, strict=True)])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert lie_channels_last(out)


def test_concatenations_of_what_variants_share_and_do_not_share() -> None:
    own, shared = images(VARIANTS, IMAGES), images(IMAGES) + 1
    with torch.no_grad(), ChannelsStayLast():
        out = torch.vmap(lambda x: torch.cat([shared, x, x + shared], dim=1))(own)
    assert torch.equal(out, torch.stack([torch.cat([shared, x, x + shared], 1) for x in own]))
    assert lie_channels_last(out)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_concatenations_lie_as_without_variants(layout: torch.memory_format) -> None:
    """Random numbers are drawn in the order of memory."""
    shared = images(IMAGES).contiguous(memory_format=layout)
    own = torch.stack([shared + v for v in range(VARIANTS)])
    own = torch.empty_strided(own.shape, (shared.numel(), *shared.stride()), dtype=own.dtype).copy_(own)
    with torch.no_grad(), ChannelsStayLast():
        out = torch.vmap(lambda x: torch.cat([x, shared], 1))(own)
    assert out[0].stride() == torch.cat([shared, shared], 1).stride()


def test_other_concatenations_and_global_pools() -> None:
    own = images(VARIANTS, IMAGES)
    with torch.no_grad(), ChannelsStayLast():
        out = torch.vmap(lambda x: torch.cat([x, 2 * x]))(own)
        pooled = torch.vmap(lambda x: F.adaptive_avg_pool2d(x, 1))(own)
    assert torch.equal(out, torch.cat([own, 2 * own], 1))
    torch.testing.assert_close(pooled, own.mean((-2, -1), keepdim=True))


class InPlaceSupernet(DartsSupernet):
    """Adds to the output of a mixed operation in place, behind its back."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.cells[0].register_forward_hook(lambda cell, args, out: out.mul_(2))
        self.cells[0].get_submodule("_ops.0").register_forward_hook(lambda op, args, out: out.add_(1))


class RepeatingSupernet(DartsSupernet):
    """Calls its first cell a second time, with its own output: the same modules on other images."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(images)
        weights = [self.weights(i in self.reductions) for i in range(len(self.cells))]
        again = self.cells[0](s0, s1, weights[0])
        s0 = self.cells[0](torch.cat([again, s1[:, again.shape[1] :]], 1).relu(), s1, weights[0])
        s0 = torch.cat([s0, s1[:, s0.shape[1] :]], 1)
        for cell, row in zip(self.cells, weights, strict=True):
            s0, s1 = s1, cell(s0, s1, row)
        features = s1.mean((2, 3))
        return features, self.classifier(features)


class DrawingSupernet(DartsSupernet):
    """Draws noise in the first mixed operation, and behind it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        first = self.cells[0].get_submodule("_ops.0")
        first.register_forward_hook(lambda op, args, out: out + torch.randn_like(out))
        self.cells[1].register_forward_hook(lambda cell, args, out: out + torch.randn_like(out))


class Counter(nn.Module):
    """Counts the calls of the mixed operations of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls = 0
        for module in model.modules():
            if type(module).__name__ == "MixedOp":
                module.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("supernet", [DartsSupernet, InPlaceSupernet, RepeatingSupernet, DrawingSupernet])
def test_what_is_shared_is_that_of_the_loop(supernet: type[DartsSupernet]) -> None:
    model, some = trained(supernet), batches(13, 6)
    expected = leave_one_out(model, some, batched=False, batch_norm="running")
    result = leave_one_out(accelerated(model), some, batch_norm="running")
    assert result.batched, result.remark
    assert_all_same(result, expected)


def test_a_small_budget_keeps_less_and_finds_the_same() -> None:
    model, some = accelerated(trained(lambda: DartsSupernet(steps=1))), batches(20)
    calls = []
    results = []
    for budget in (64 << 20, 200_000):
        counter = Counter(model)
        results.append(leave_one_out(model, some, batch_norm="running", memory_budget=budget))
        calls.append(counter.calls)
    assert_all_same(*results)
    assert calls[0] < calls[1]
