"""Calls of the fused ops for benchmarks/gpu.py: their arguments, their errors and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vpdarts_fast import ops
from vpdarts_fast.analysis.cost.counting import DEVICE, counting
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.contract import reference

TRAINING = ("mixed_cell", "mixed_sum", "relu_conv", "trained_residual_block")
"""Ops that are timed with their backward pass."""


def arguments(op: str, channels: int, images: int, size: int, variants: int = 25) -> list[Any]:
    """Of an op, random and on the CPU; alphas and statistics have three dimensions at most."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return (
            values if len(shape) < 4 or shape[-1] < 4 else values.movedim(-3, -1).contiguous().movedim(-1, -3)
        )

    def weights(edges: int) -> list[Tensor]:
        scale = channels**-0.5
        return [normal(edges, channels, channels, k, k) * (scale / k) for k in (1, 3)]

    node = (1, images, channels, size, size)
    if op == "relu_conv":
        return [normal(*node[1:]), *weights(3)]
    if op == "mixed_sum":
        return [[normal(*node) for _ in range(3)] for _ in range(3)] + [normal(1, 3, 5)]
    if op == "mixed_cell":
        return [normal(*node), *weights(6), normal(1, 6, 5)]
    if op == "masked_cell":
        tables = torch.full((variants, 6, 5), 0.2)
        tables.view(variants, -1).fill_diagonal_(0)
        return [
            normal(*node),
            *weights(6),
            normal(6, 2, channels),
            normal(6, 2, channels).square() + 0.5,
            tables,
        ]
    wide = 2 * channels
    shapes = (wide, channels, 3, 3), (wide, wide, 3, 3), (wide, channels, 1, 1)
    scales = [normal(*shape) * (shape[1] * shape[2] ** 2) ** -0.5 for shape in shapes]
    return [normal(*node[1:]), *scales, normal(2, wide).abs() + 0.5, normal(2, wide)]


def placed(args: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """On the device; activations and weights in the dtype, what is small in float32."""
    return tree_map(lambda x: x.to(device, dtype if x.dim() > 3 else torch.float32), args)


def call_of(op: str, args: list[Any], backend: str) -> Callable[[], Any]:
    """The op, and its backward pass if it is for training."""
    function = getattr(ops, op)
    if op not in TRAINING:
        return lambda: function(*args, backend=backend)
    leaves = [leaf.requires_grad_() for leaf in tree_leaves(args)]

    def both() -> Any:
        out = function(*args, backend=backend)
        torch.autograd.grad(sum(x.sum() for x in differentiable(op, out)), leaves, allow_unused=True)
        return out

    return both


def call_again(op: str, backend: str, args: list[Any]) -> Any:
    """`call_of` with arguments of its own, called."""
    return call_of(op, args, backend)()


def differentiable(op: str, out: Any) -> list[Tensor]:
    """Of a training op's outputs all, or the first where statistics follow."""
    return tree_leaves(out) if op == "relu_conv" else [out[0]]


def counted(call: Callable[[list[Any]], object], args: list[Any], shared_bytes: int) -> Tally:
    """What the call costs with arguments like these; of small ones the values matter."""
    lists = tree_map(lambda x: x.tolist() if x.numel() < 1 << 12 else None, args)
    with counting(shared_bytes) as count:
        with count:

            def hollow(x: Tensor, values: Any) -> Tensor:
                if values is not None:
                    return torch.tensor(values, dtype=x.dtype).to(DEVICE)
                return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)

            made = [
                [hollow(x, v) for x, v in zip(arg, some, strict=True)]
                if isinstance(arg, list)
                else hollow(arg, some)
                for arg, some in zip(args, lists, strict=True)
            ]
            start = count.tally.copy()
            call(made)
        return count.tally - start


def error_of(op: str, args: list[Any], out: Any) -> float:
    """Of the first output, relative to the reference in float64."""
    exact = getattr(reference, op)(*tree_map(lambda x: x.detach().double(), args))
    expected, actual = (tree_leaves(some)[0].detach().double() for some in (exact, out))
    return float((actual - expected).abs().max() / expected.abs().max())
