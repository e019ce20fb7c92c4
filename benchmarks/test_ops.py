"""Each fused op and a whole training cell, 64 images, where they stand in a supernet of C=16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import pytest
import torch
from contenders import (
    BY_NAME,
    FORMS,
    GRADIENT_TOLERANCE,
    SKIP_DROPOUT,
    Contender,
    Form,
    new_alpha,
    relative_error,
)
from darts_edge import DartsEdge
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.evaluation.leave_one_out import distinct_variants, removals
from vpdarts_fast.spaces.blocks import ResidualBlock

pytestmark = pytest.mark.full

BATCH, SKIP, EDGES_OF_A_NODE = 64, 1, 3
SHAPES = [
    pytest.param(16, 32, id="C=16@32"),
    pytest.param(32, 16, id="C=32@16"),
    pytest.param(64, 8, id="C=64@8"),
]
Work = Callable[[], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def verified(work: Mapping[str, Work], tolerance: float = GRADIENT_TOLERANCE) -> Mapping[str, Work]:
    """The same, if all results are the first one's."""
    expected, *_ = (function() for function in work.values())
    for name, function in work.items():
        assert relative_error(function(), expected) < tolerance, name
    return work


class CellWork:
    """Forward, or forward and backward, of a cell.

    Args:
        gradients: of what: "" for inference; "weights"; or "everything", x and alpha too.
        dropout: of the skip connections, whose alphas are then 0: verified results do not depend on it.
    """

    def __init__(self, form: Form, channels: int, size: int, gradients: str, dropout: float = 0.0) -> None:
        self.cell = form.cell(channels, dropout)
        self.forward = form.forward(self.cell)
        self.gradients = gradients
        self.x = form.images(normal(BATCH, channels, size, size))
        self.gradient = form.images(normal(BATCH, channels, size, size, seed=1))
        self.alpha = new_alpha()
        if dropout:
            self.alpha[:, SKIP] = 0
        for tensor in (self.x, self.alpha):
            tensor.requires_grad_(gradients == "everything")
        self.work = form.run(self._work)

    def _work(self) -> Tensor:
        """The output, or all gradients as a vector; running statistics are updated."""
        with nullcontext() if self.gradients else torch.no_grad():
            out: Tensor = self.forward(self.x, self.alpha)
        if not self.gradients:
            return out
        wanted = [*self.cell.parameters(), *(t for t in (self.x, self.alpha) if t.requires_grad)]
        found = torch.autograd.grad(out, wanted, self.gradient, allow_unused=True)
        kept = [op for op in range(self.alpha.shape[1]) if op != SKIP]  # that of a skip depends on the draw
        parts = [g[:, kept] if t is self.alpha else g for g, t in zip(found, wanted, strict=True)]
        return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize("gradients", ["", "weights"], ids=["forward", "forward+backward"])
def test_mixed_cell(gradients: str, channels: int, size: int, compare: Callable[..., None]) -> None:
    work = {f.name: CellWork(f, channels, size, gradients).work for f in FORMS}
    compare(verified(work), rounds=7)


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_cell(channels: int, size: int, compare: Callable[..., None]) -> None:
    """Forward and backward of a training cell with dropout, gradients of everything."""
    work = {f.name: CellWork(f, channels, size, "everything", SKIP_DROPOUT).work for f in FORMS}
    compare(verified(work), rounds=7)


def leave_one_out_tables() -> Tensor:
    """[25, E, O]: the base and all removals that differ from it."""
    alpha = new_alpha()
    return distinct_variants(alpha, removals(alpha))[0]


def masked_forward(form: Form, x: Tensor, channels: int) -> Callable[[Sequence[int]], Tensor]:
    """Variant numbers -> the cell's outputs for them, batch norms with fixed statistics.

    x is [1, N, C, H, W] in the first cell, which all variants share, and [25, N, C, H, W] behind it.
    """
    cell = form.cell(channels, 0.0).eval()
    tables = leave_one_out_tables()
    if not form.fused:
        images = [form.images(some) for some in x]
        network = form.forward(cell)
        return lambda some: torch.stack([network(images[v % len(x)], tables[v]) for v in some])
    inputs = form.images(x.flatten(0, 1)).view_as(x)
    norms = [[conv.norm for conv in pair] for pair in cell.convolutions()]
    mean = torch.stack([torch.stack([norm.running_mean for norm in pair]) for pair in norms])
    variance = torch.stack([torch.stack([norm.running_var for norm in pair]) for pair in norms])

    def fused(some: Sequence[int]) -> Tensor:
        out = ops.masked_cell(inputs, *cell.convolution_weights(), mean, variance, tables, cell.norm.eps)
        return out if len(some) == len(tables) else out[list(some)]

    return fused


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_masked_cell(channels: int, size: int, compare: Callable[..., None]) -> None:
    """The 25 variants of leave-one-out; one by one where they are not fused."""
    variants = len(leave_one_out_tables())
    x = normal(1 if size == 32 else variants, BATCH, channels, size, size)
    few = [0, 1, 8, 14, variants - 1]  # one of each kind
    forward = {form.name: masked_forward(form, x, channels) for form in FORMS}
    verified({n: BY_NAME[n].inference(lambda f=f: f(few)) for n, f in forward.items()}, 1e-4)
    contenders = {}
    for name, function in forward.items():
        fused = BY_NAME[name].fused
        timed = range(variants) if fused else few
        note = "" if fused else f"extrapolated from {len(few)} of {variants} variants"
        work = BY_NAME[name].inference(lambda f=function, timed=timed: f(timed))
        contenders[name] = Contender(work, variants / len(timed), note=note)
    compare(contenders, rounds=7)


def residual_forward(form: Form, channels: int, size: int) -> Work:
    """The block behind a stage for a stack of images, batch norms with fixed statistics."""
    torch.manual_seed(0)
    block = form.module(ResidualBlock(channels, 2 * channels))
    x = form.images(normal(4 * BATCH, channels, size, size, seed=1))
    with torch.no_grad():
        block.train()(x)
    network = form.forward(block.eval())
    return form.inference(lambda: block.with_fixed_statistics(x) if form.fused else network(x))


@pytest.mark.parametrize(("channels", "size"), SHAPES[:2])
def test_residual_block(channels: int, size: int, compare: Callable[..., None]) -> None:
    """As leave-one-out evaluates it, 256 images."""
    work = {form.name: residual_forward(form, channels, size) for form in FORMS}
    compare(verified(work, 1e-4), rounds=7)


def residual_gradients(form: Form, channels: int, size: int) -> Work:
    """Forward and backward of the block in training: all gradients as a vector."""
    torch.manual_seed(0)
    block = form.module(ResidualBlock(channels, 2 * channels)).train()
    network = form.forward(block)
    x = form.images(normal(BATCH, channels, size, size, seed=1)).requires_grad_()
    gradient = form.images(normal(BATCH, 2 * channels, size // 2, size // 2, seed=2))

    def gradients() -> Tensor:
        wanted = [x, *block.parameters()]
        return torch.cat([g.flatten() for g in torch.autograd.grad(network(x), wanted, gradient)])

    return form.run(gradients)


@pytest.mark.parametrize(("channels", "size"), SHAPES[:2])
def test_trained_residual_block(channels: int, size: int, compare: Callable[..., None]) -> None:
    work = {form.name: residual_gradients(form, channels, size) for form in FORMS}
    compare(verified(work), rounds=7)


def native_op(op: str) -> pytest.MarkDecorator:
    missing = op not in BACKENDS[0].implementations
    return pytest.mark.skipif(missing, reason=f"{op} has no native implementation")


@native_op("relu_conv")
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_relu_conv(channels: int, size: int, compare: Callable[..., None]) -> None:
    """The three edges that leave a cell's first node, forward and backward; PyTorch against ours."""
    edges = EDGES_OF_A_NODE
    weights = [normal(edges, channels, channels, k, k).requires_grad_() for k in (1, 3)]

    def work(form: Form) -> Work:
        x = form.images(normal(BATCH, channels, size, size, seed=1)).requires_grad_()

        def gradients() -> Tensor:
            outputs = ops.relu_conv(x, *weights)
            total = torch.stack([(out * out).mean() for some in outputs for out in some]).sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(total, [x, *weights])])

        return form.run(gradients)

    compare(verified({form.name: work(form) for form in FORMS if form.fused}), rounds=7)


@native_op("mixed_sum")
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_mixed_sum(channels: int, size: int, compare: Callable[..., None]) -> None:
    """The three edges that enter a cell's last node, forward and backward; PyTorch against ours."""
    edges = EDGES_OF_A_NODE

    def work(form: Form) -> Work:
        shape = (BATCH, channels, size, size)
        terms = [form.images(normal(*shape, seed=i)).unsqueeze(0).requires_grad_() for i in range(3 * edges)]
        alpha = new_alpha()[None, -edges:].requires_grad_()

        def gradients() -> Tensor:
            node, _, _ = ops.mixed_sum(terms[:edges], terms[edges : 2 * edges], terms[2 * edges :], alpha)
            return torch.cat([g.flatten() for g in torch.autograd.grad((node**3).mean(), [*terms, alpha])])

        return form.run(gradients)

    compare(verified({form.name: work(form) for form in FORMS if form.fused}), rounds=7)


@native_op("relu_pointwise")
@pytest.mark.parametrize(
    ("channels", "out", "size", "stride"),
    [
        pytest.param(64, [32], 32, 1, id="C=64@32"),
        pytest.param(128, [64], 16, 1, id="C=128@16"),
        pytest.param(32, [16, 16], 32, 2, id="C=32@32, factorised reduce"),
        pytest.param(64, [32, 32], 16, 2, id="C=64@16, factorised reduce"),
    ],
)
def test_relu_pointwise(
    channels: int, out: list[int], size: int, stride: int, compare: Callable[..., None]
) -> None:
    """In front of a DARTS cell and on its edges, forward and backward; PyTorch against ours."""
    weights = [normal(part, channels, 1, 1, seed=i).requires_grad_() for i, part in enumerate(out)]

    def work(form: Form) -> Work:
        x = form.images(normal(BATCH, channels, size, size, seed=2)).requires_grad_()
        gradient = form.images(normal(BATCH, sum(out), size // stride, size // stride, seed=3))

        def gradients() -> Tensor:
            found = torch.autograd.grad(ops.relu_pointwise(x, weights, stride), [x, *weights], gradient)
            return torch.cat([g.flatten() for g in found])

        return form.run(gradients)

    compare(verified({form.name: work(form) for form in FORMS if form.fused}), rounds=7)


@native_op("mixed_op")
@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize("stride", [1, 2], ids=["stride=1", "stride=2"])
def test_mixed_op(stride: int, channels: int, size: int, compare: Callable[..., None]) -> None:
    """An edge of the DARTS space with all its operations, forward and backward, gradients of everything."""

    def work(form: Form) -> Work:
        torch.manual_seed(0)
        edge = form.module(DartsEdge(channels, stride, form.fused))
        forward = form.forward(edge)
        x = form.images(normal(BATCH, channels, size, size)).requires_grad_()
        alpha = torch.softmax(normal(8), 0).requires_grad_()
        gradient = form.images(normal(BATCH, channels, size // stride, size // stride, seed=1))

        def gradients() -> Tensor:
            found = torch.autograd.grad(forward(x, alpha), [x, alpha, *edge.parameters()], gradient)
            return torch.cat([g.flatten() for g in found])

        return form.run(gradients)

    compare(verified({form.name: work(form) for form in FORMS}), rounds=7)
