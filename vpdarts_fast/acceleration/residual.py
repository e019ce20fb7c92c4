"""Residual blocks between the stages of a network: recognised by their layers, run on `ops`."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from vpdarts_fast import ops
from vpdarts_fast.acceleration.copies import isolated_copy
from vpdarts_fast.acceleration.plans import OwnMethod, Path, ResidualPlan, Unrecognised, at
from vpdarts_fast.acceleration.recognise_op import layer_called, square
from vpdarts_fast.acceleration.run import are_fixed, backend_for, fixed_statistics, norm_at, update
from vpdarts_fast.acceleration.snapshot import instance_methods, remembered
from vpdarts_fast.acceleration.tracing import trace
from vpdarts_fast.acceleration.vmap import batched_statistics, of_variants
from vpdarts_fast.contract.derivatives import with_statistics

LAYERS = {nn.ReLU: 2, nn.Conv2d: 3, nn.BatchNorm2d: 2, nn.AvgPool2d: 1}
"""Of a residual block."""

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@remembered
def recognise_residual(block: nn.Module) -> ResidualPlan:
    """Finds out which layers make a module a residual block of NAS-Bench-201.

    Raises:
        Unrecognised: it is none.
    """
    plan = _recognise(block)
    if plan is None:
        raise Unrecognised
    if any(map(instance_methods, block.modules())):
        raise Unrecognised("has a layer with a method of its own, not that of its class")
    return plan


def _recognise(block: nn.Module) -> ResidualPlan | None:
    layers = Counter(type(module) for module in block.modules() if not list(module.children()))
    if layers != LAYERS or type(block).forward is nn.Module.forward:
        return None
    try:
        block = isolated_copy(block)
        nodes = list(trace(block).nodes)
    except Exception:  # tracing runs their code, which may raise anything
        return None
    total = nodes[-1].args[0]
    if not isinstance(total, fx.Node) or total.target not in ADDITIONS or len(total.args) != 2:
        return None
    parts = [_layers(block, nodes[0], part) for part in total.args]
    chains = sorted((part for part in parts if part is not None), key=len)
    if len(chains) != 2 or len(nodes) != len(("x", "total", "output")) + sum(LAYERS.values()):
        return None
    shortcut, residual = chains
    kinds = [type(at(block, path)) for path in (*shortcut, *residual)]
    if kinds != [nn.AvgPool2d, nn.Conv2d, *[nn.ReLU, nn.Conv2d, nn.BatchNorm2d] * 2]:
        return None
    plan = ResidualPlan((residual[1], residual[4], shortcut[1]), (residual[2], residual[5]))
    return plan if _fits(block, plan, shortcut[0], residual[0]) else None


def _layers(block: nn.Module, start: fx.Node, node: object) -> list[Path] | None:
    """Of a chain of layers, the first first."""
    paths: list[Path] = []
    while node is not start:
        call = layer_called(block, node)
        if call is None:
            return None
        path, _, node = call
        paths.insert(0, path)
    return paths


def _fits(block: nn.Module, plan: ResidualPlan, pool: Path, relu: Path) -> bool:
    first, second, shortcut = (_conv(block, path) for path in plan.convolutions)
    average, rectifier = at(block, pool), at(block, relu)
    assert isinstance(average, nn.AvgPool2d) and isinstance(rectifier, nn.ReLU)
    pooled = square(average.kernel_size), square(average.stride), square(average.padding)
    shapes = [(square(c.kernel_size), square(c.stride), square(c.padding)) for c in (first, second, shortcut)]
    plain = all(
        conv.groups == 1 and conv.bias is None and square(conv.dilation) == 1 and conv.padding_mode == "zeros"
        for conv in (first, second, shortcut)
    )
    return (
        plain
        and shapes == [(3, 2, 1), (3, 1, 1), (1, 1, 0)]
        and pooled == (2, 2, 0)
        and average.divisor_override is None
        and not rectifier.inplace
        and len({norm_at(block, path).eps for path in plan.norms}) == 1
        and all(norm_at(block, path).affine for path in plan.norms)
    )


def _conv(block: nn.Module, path: Path) -> nn.Conv2d:
    conv = at(block, path)
    assert isinstance(conv, nn.Conv2d)
    return conv


def residual_block(block: nn.Module, plan: ResidualPlan, x: Tensor, backend: str) -> Tensor:
    """The block's output [N, C_out, H / 2, W / 2] for `x` [N, C, H, W], computed by `ops`.

    Raises:
        OwnMethod: the call is not covered; the block's own method serves it.
    """
    norms = [norm_at(block, path) for path in plan.norms]
    first, second, shortcut = (_conv(block, path).weight for path in plan.convolutions)
    channels, wide = x.shape[1], len(first)
    shapes = [weight.shape[:2] for weight in (first, second, shortcut)]
    if shapes != [(wide, channels), (wide, wide), (wide, channels)]:
        raise OwnMethod("has convolutions of other numbers of channels")
    if x.shape[2] % 2 or x.shape[3] % 2 or x.numel() // x.shape[1] < 8:
        raise OwnMethod
    gamma, beta = (torch.stack(parts) for parts in zip(*((n.weight, n.bias) for n in norms), strict=True))
    fixed = are_fixed(norms, x, first, block)

    def with_fixed_statistics(x: Tensor) -> Tensor:
        """Of `x` [1 or V, N, C, H, W], with the statistics that were estimated."""
        chosen = backend_for("residual_block", x, gamma, backend)
        mean, variance = fixed_statistics(norms, (None, None)).unbind(-2)
        scale = gamma / torch.sqrt(variance + norms[0].eps)
        shift = beta - mean * scale
        if scale.dim() == 2:
            out = ops.residual_block(x.flatten(0, 1), first, second, shortcut, scale, shift, backend=chosen)
            return out.view(*x.shape[:2], *out.shape[1:])
        variants = zip(x.expand(len(scale), *x.shape[1:]), scale, shift, strict=True)
        outs = [ops.residual_block(images, first, second, shortcut, *fold, backend=chosen)
                for images, *fold in variants]  # fmt: skip
        return torch.stack(outs)

    def with_batch_statistics(x: Tensor) -> Tensor:
        """Of `x` [1 or V, N, C, H, W], with those of the batch, which are kept."""
        chosen = backend_for("trained_residual_block", x, gamma, backend)

        def block(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return ops.trained_residual_block(
                images, first, second, shortcut, gamma, beta, norms[0].eps, backend=chosen
            )

        def blocks() -> tuple[Tensor, Tensor, Tensor]:
            out, mean, variance = zip(*map(block, x), strict=True)
            return _stacked(out), _stacked(mean), _stacked(variance)

        def keep(out: Tensor, mean: Tensor, variance: Tensor) -> None:
            update(norms, (None, None), mean, variance, out[0])

        return with_statistics(blocks, keep)

    function = with_fixed_statistics if fixed else with_batch_statistics
    return of_variants(function, x, batched=batched_statistics(block))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Of one tensor a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))
