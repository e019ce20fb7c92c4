"""Arguments of `mixed_op` for its tests, and how its gradients are held against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from op_contract import (
    Close,
    gradients,
    normal,
    true_derivatives,
    with_tensors,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero, norms

CHANNELS = (1, 3, 4, 16, 20)
EPS = 0.5
"""Large: of what a batch norm undoes, the scale of a convolution, there would be no gradient but rounding."""
SIZES = ((1, 1), (1, 6), (2, 2), (5, 7), (6, 6), (16, 9))


def norm(c: int, seed: int | None = None, eps: float = EPS) -> Norm:
    """Affine with a seed."""
    if seed is None:
        return Norm(eps)
    return Norm(eps, normal(c, seed=seed) / 2 + 1, normal(c, seed=seed + 1))


def stage(c: int, k: int, dilation: int, seed: int, of: Norm) -> Stage:
    depthwise = normal(c, 1, k, k, seed=seed) / k
    return Stage(depthwise, normal(c, c, 1, 1, seed=seed + 1) * c**-0.5, dilation, of)


def given(v: int, n: int, c: int, size: tuple[int, int], stride: int, seed: int) -> Tensor:
    return normal(v, n, c, *(-(-side // stride) for side in size), seed=seed)


def darts(
    v: int, n: int, c: int, size: tuple[int, int], stride: int, affine: bool = False, eps: float = EPS
) -> list[Branch]:
    """The whole DARTS space; at stride 2 the skip connection is given."""
    of = [norm(c, 100 + 2 * m if affine else None, eps) for m in range(9)]
    skip = Skip() if stride == 1 else Given(given(v, n, c, size, 2, 30), of[8])
    return [
        Zero(),
        Pool("max", of[0]),
        Pool("avg", of[1]),
        skip,
        SepConv((stage(c, 3, 1, 40, of[2]), stage(c, 3, 1, 42, of[3]))),
        SepConv((stage(c, 5, 1, 44, of[4]), stage(c, 5, 1, 46, of[5]))),
        SepConv((stage(c, 3, 2, 48, of[6]),)),
        SepConv((stage(c, 5, 2, 50, of[7]),)),
    ]


def others(v: int, n: int, c: int, size: tuple[int, int], stride: int, eps: float = EPS) -> list[Branch]:
    """What the DARTS space does not have: no norm, wider kernels, given terms, dilations of second stages."""
    return [
        Given(given(1, n, c, size, stride, 60)),
        Pool("avg"),
        SepConv((stage(c, 7, 1, 62, norm(c, None, eps)), stage(c, 3, 2, 64, norm(c, 66, eps)))),
        Given(given(v, n, c, size, stride, 68) + 1, norm(c, 70, eps)),
        Pool("max"),
        SepConv((stage(c, 7, 2, 72, Norm(eps, gamma=normal(c, seed=74))),)),
    ]


def mixed_op_args(
    v: int = 1,
    n: int = 3,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    stride: int = 1,
    dtype: torch.dtype = torch.float64,
    shared: bool = False,
    branches: Callable[..., list[Branch]] = darts,
    fixed: bool = False,
    of_each: bool = False,
    **settings: Any,
) -> list[Any]:
    """Statistics that are fixed are those of all variants, or of each."""
    x, some = (
        normal(1 if shared else v, n, c, *size),
        branches(1 if shared else v, n, c, size, stride, **settings),
    )
    shape = (*([v] if of_each else []), len(norms(some)), c)
    statistics = (
        torch.stack([normal(*shape, seed=5), normal(*shape, seed=6).abs() + 0.5], dim=-2) if fixed else None
    )
    args = [x, normal(v, len(some), seed=7), some, stride, statistics]
    return with_tensors(args, lambda tensor: tensor.to(dtype))  # type: ignore[no-any-return]


def output_only(outputs: Any) -> list[Tensor]:
    """The statistics are not differentiable."""
    return [outputs[0]]


def check(args: Sequence[Any], backend: str, close: Close) -> None:
    """Gradients of every tensor argument. Those of parameters cancel where a batch norm undoes what they
    change, and of a few channels nothing else is left: errors are measured against the largest of all."""
    expected = true_derivatives(lambda exact: gradients(reference.mixed_op, exact, output_only), args)
    actual = gradients(lambda *some: ops.mixed_op(*some, backend=backend), args, output_only)
    images = [i for i, gradient in enumerate(actual) if gradient.dim() in (2, 5)]
    parameters = [i for i in range(len(actual)) if i not in images]
    close(*(torch.cat([some[i].flatten() for i in parameters]) for some in (actual, expected)))
    for i in images:
        close(actual[i], expected[i])


def reference_of_output(*args: Any) -> list[Tensor]:
    return [reference.mixed_op(*args)[0]]


def has_a_variance(n: int, size: tuple[int, int], stride: int) -> bool:
    return n * -(-size[0] // stride) * -(-size[1] // stride) > 1
