"""`mixed_op`: the weighted sum of all candidate operations of one edge of a DARTS cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from vpdarts_fast import backends
from vpdarts_fast.branches import (
    Branch,
    Given,
    Pool,
    SepConv,
    Skip,
    Stage,
    Zero,
    affine,
    norms,
    terms,
    with_terms,
)
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.shapes import check_shape
from vpdarts_fast.precision import autocast, without_autocast

OP = "mixed_op"


def mixed_op(
    x: Tensor,
    alpha: Tensor,
    branches: Sequence[Branch],
    stride: int = 1,
    statistics: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_o alpha[o] * op_o(x) (DARTS, Eq. 2; paper, Eq. 3). Differentiable but for the statistics.

    Args:
        x: [1 or V, N, C, H, W], the node that the edge leaves.
        alpha: [V, O].
        branches: O candidate operations of `vpdarts_fast.branches`, with M batch norms in all.
        stride: 1 or 2, of pools and of first stages.
        statistics: [M, 2, C], mean and variance to normalise with; or none: the batch's own.
        backend: a name of `vpdarts_fast.backends.BACKENDS`, or auto.

    Returns:
        [V, N, C, H', W'], H' = ceil(H / stride); mean and variance [V, M, C] that normalised, the batch's own
        biased. Batch norms are in the order of branches, and of stages within a branch.

    Raises:
        UserError: shapes or settings that do not fit, or no backend for the dtype and device.
    """
    _check_sizes(x, alpha, branches, stride)
    size = x.shape[1], *(-(-side // stride) for side in x.shape[3:])  # N, H', W'
    for o, branch in enumerate(branches):
        _check_branch(f"branches[{o}]", branch, x, len(alpha), stride, size)
    count = len(norms(branches))
    if statistics is not None:
        check_shape(OP, "statistics", statistics, (count, 2, x.shape[2]))
    elif count > 0 and prod(size) < 2:
        raise UserError(f"{OP}: the output must hold two values per channel; got x of {list(x.shape)}")
    inputs, cast = [_autocast(x)], [with_terms(branch, _autocast) for branch in branches]
    small = [alpha, *affine(branches), *([] if statistics is None else [statistics])]
    implementation = backends.select(OP, inputs + terms(cast), backend, small)
    with without_autocast(x):
        out, mean, variance = implementation(*inputs, alpha, cast, stride, statistics)
    return out, mean, variance


def _autocast(tensor: Tensor) -> Tensor:
    return autocast(tensor)[0]


def _check_sizes(x: Tensor, alpha: Tensor, branches: Sequence[Branch], stride: int) -> None:
    if x.dim() != 5 or 0 in x.shape[2:]:
        raise UserError(f"{OP}: x must be [V, N, C, H, W], C, H and W at least 1; got {list(x.shape)}")
    if alpha.dim() != 2 or len(alpha) == 0 or alpha.shape[1] != len(branches):
        expected = f"[V, O] with O = {len(branches)} branches"
        raise UserError(f"{OP}: alpha must be {expected}, V at least 1; got {list(alpha.shape)}")
    if x.shape[0] not in (1, len(alpha)):
        raise UserError(f"{OP}: x must hold 1 or V = {len(alpha)} variants; got {x.shape[0]}")
    if stride not in (1, 2):
        raise UserError(f"{OP}: stride must be 1 or 2; got {stride}")


def _check_branch(
    name: str, branch: Branch, x: Tensor, variants: int, stride: int, size: tuple[int, ...]
) -> None:
    """size: N, H', W'."""
    channels = x.shape[2]
    if isinstance(branch, Skip) and stride != 1:
        raise UserError(f"{OP}: {name} must have stride 1 as a Skip; got {stride}. Use a Given there")
    if isinstance(branch, Pool) and branch.kind not in ("avg", "max"):
        raise UserError(f"{OP}: {name}.kind must be avg or max; got {branch.kind!r}")
    if isinstance(branch, Given):
        raw, expected = branch.raw, (size[0], channels, *size[1:])
        if raw.dim() != 5 or raw.shape[0] not in (1, variants) or tuple(raw.shape[1:]) != expected:
            wanted = f"[1 or {variants}, {', '.join(map(str, expected))}]"
            raise UserError(f"{OP}: {name}.raw must be {wanted}; got {list(raw.shape)}")
    if isinstance(branch, SepConv):
        if len(branch.stages) not in (1, 2):
            raise UserError(f"{OP}: {name}.stages must be one or two; got {len(branch.stages)}")
        for i, stage in enumerate(branch.stages):
            _check_stage(f"{name}.stages[{i}]", stage, channels)
    elif not isinstance(branch, (Zero, Skip, Pool, Given)):
        raise UserError(f"{OP}: {name} must be a branch; got {type(branch).__name__}")
    for norm in norms([branch]):
        for part, tensor in (("gamma", norm.gamma), ("beta", norm.beta)):
            if tensor is not None:
                check_shape(OP, f"{name}: {part}", tensor, (channels,))


def _check_stage(name: str, stage: Stage, channels: int) -> None:
    shape = tuple(stage.depthwise.shape)
    if len(shape) != 4 or shape[:2] != (channels, 1) or shape[2] not in (3, 5, 7) or shape[2] != shape[3]:
        expected = f"[{channels}, 1, k, k], k = 3, 5 or 7"
        raise UserError(f"{OP}: {name}.depthwise must be {expected}; got {list(shape)}")
    check_shape(OP, f"{name}.pointwise", stage.pointwise, (channels, channels, 1, 1))
    if stage.dilation not in (1, 2):
        raise UserError(f"{OP}: {name}.dilation must be 1 or 2; got {stage.dilation}")
