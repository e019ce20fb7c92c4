"""`mixed_op`: the weighted sum of all candidate operations of one edge of a DARTS cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.contract.branches import (
    Branch,
    Given,
    Norm,
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
from vpdarts_fast.ops.arguments import (
    check_count,
    check_integer,
    check_like,
    check_sequence,
    check_small,
    check_tensor,
    checked_eps,
)
from vpdarts_fast.ops.shapes import check_shape
from vpdarts_fast.runtime.precision import autocast, autocasts, without_autocast

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
    """The weighted sum of the candidate operations of an edge, sum_o alpha[o] * op_o(x).

    It is Eq. 2 of DARTS and Eq. 3 of the paper. Differentiable but for the statistics.

    Args:
        x: [1 or V, N, C, H, W], the node that the edge leaves.
        alpha: [V, O].
        branches: O candidate operations of `vpdarts_fast.contract.branches`, with M batch norms in all.
        stride: 1 or 2, of pools and of first stages.
        statistics: [M, 2, C], mean and variance to normalise with, or [V, M, 2, C] where each variant has its
            own; or none: the batch's own.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        [V, N, C, H', W'], H' = ceil(H / stride); mean and variance [V, M, C] that normalised, the batch's own
        biased. Batch norms are in the order of branches, and of stages within a branch.

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor(OP, "x", x)
    check_small(OP, x, alpha=alpha)
    check_sequence(OP, "branches", branches, "branches")
    check_integer(OP, "stride", stride, (1, 2))
    _check_sizes(x, alpha, branches)
    size = x.shape[1], *(-(-side // stride) for side in x.shape[3:])  # N, H', W'
    for o, branch in enumerate(branches):
        _check_branch(f"branches[{o}]", branch, x, len(alpha), stride, size)
    count = len(norms(branches))
    if statistics is not None:
        check_small(OP, x, statistics=statistics)
        leading = (len(alpha),) if statistics.dim() == 4 else ()
        check_shape(OP, "statistics", statistics, (*leading, count, 2, x.shape[2]))
    elif count > 0 and prod(size) < 2:
        raise UserError(f"{OP}: the output must hold two values per channel; got x of {list(x.shape)}")
    inputs, cast = [x], branches
    if autocasts(x):
        inputs, cast = autocast(x), [with_terms(branch, _autocast) for branch in branches]
    small = [alpha, *affine(branches), *([] if statistics is None else [statistics])]
    implementation = registry.select(OP, inputs + terms(cast), backend, small)
    with without_autocast(x):
        out, mean, variance = implementation(*inputs, alpha, cast, stride, statistics)
    return out, mean, variance


def _autocast(tensor: Tensor) -> Tensor:
    return autocast(tensor)[0]


def _check_sizes(x: Tensor, alpha: Tensor, branches: Sequence[Branch]) -> None:
    if x.dim() != 5 or 0 in x.shape[2:]:
        raise UserError(f"{OP}: x must be [V, N, C, H, W], C, H and W at least 1; got {list(x.shape)}")
    if alpha.dim() != 2 or len(alpha) == 0 or alpha.shape[1] != len(branches):
        expected = f"[V, O] with O = {len(branches)} branches"
        raise UserError(f"{OP}: alpha must be {expected}, V at least 1; got {list(alpha.shape)}")
    if x.shape[0] not in (1, len(alpha)):
        raise UserError(f"{OP}: x must hold 1 or V = {len(alpha)} variants; got {x.shape[0]}")
    check_count(OP, "alpha", "variants", len(alpha))


def _check_branch(
    name: str, branch: Branch, x: Tensor, variants: int, stride: int, size: tuple[int, ...]
) -> None:
    """Checks one candidate operation, whose output has `size`: N, H', W'."""
    if isinstance(branch, SepConv):
        check_sequence(OP, f"{name}.stages", branch.stages, "stages")
        if len(branch.stages) not in (1, 2):
            raise UserError(f"{OP}: {name}.stages must be one or two; got {len(branch.stages)}")
        for i, stage in enumerate(branch.stages):
            _check_stage(f"{name}.stages[{i}]", stage, x)
    elif isinstance(branch, (Pool, Given)):
        if branch.norm is not None:
            _check_norm(f"{name}.norm", branch.norm, x)
        if isinstance(branch, Given):
            _check_given(name, branch.raw, x, variants, size)
        elif branch.kind not in ("avg", "max"):
            raise UserError(f"{OP}: {name}.kind must be avg or max; got {branch.kind!r}")
    elif isinstance(branch, Skip):
        if stride != 1:
            raise UserError(f"{OP}: {name} must have stride 1 as a Skip; got {stride}. Use a Given there")
    elif not isinstance(branch, Zero):
        raise UserError(f"{OP}: {name} must be a branch; got a value of type {type(branch).__qualname__}")


def _check_given(name: str, raw: Tensor, x: Tensor, variants: int, size: tuple[int, ...]) -> None:
    check_like(OP, x, **{f"{name}.raw": raw})
    expected = (size[0], x.shape[2], *size[1:])
    if raw.dim() != 5 or raw.shape[0] not in (1, variants) or tuple(raw.shape[1:]) != expected:
        wanted = f"[1 or {variants}, {', '.join(map(str, expected))}]"
        raise UserError(f"{OP}: {name}.raw must be {wanted}; got {list(raw.shape)}")


def _check_stage(name: str, stage: Stage, x: Tensor) -> None:
    if not isinstance(stage, Stage):
        raise UserError(f"{OP}: {name} must be a Stage; got a value of type {type(stage).__qualname__}")
    check_like(OP, x, **{f"{name}.depthwise": stage.depthwise, f"{name}.pointwise": stage.pointwise})
    channels, shape = x.shape[2], tuple(stage.depthwise.shape)
    if len(shape) != 4 or shape[:2] != (channels, 1) or shape[2] not in (3, 5, 7) or shape[2] != shape[3]:
        expected = f"[{channels}, 1, k, k], k = 3, 5 or 7"
        raise UserError(f"{OP}: {name}.depthwise must be {expected}; got {list(shape)}")
    check_shape(OP, f"{name}.pointwise", stage.pointwise, (channels, channels, 1, 1))
    check_integer(OP, f"{name}.dilation", stage.dilation, (1, 2))
    _check_norm(f"{name}.norm", stage.norm, x)


def _check_norm(name: str, norm: Norm, x: Tensor) -> None:
    if not isinstance(norm, Norm):
        raise UserError(f"{OP}: {name} must be a Norm; got a value of type {type(norm).__qualname__}")
    checked_eps(OP, norm.eps, f"{name}.eps")
    for part, tensor in ((f"{name}.gamma", norm.gamma), (f"{name}.beta", norm.beta)):
        if tensor is not None:
            check_small(OP, x, **{part: tensor})
            check_shape(OP, part, tensor, (x.shape[2],))
