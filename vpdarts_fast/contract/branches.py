"""The candidate operations of one edge, as `mixed_op` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A batch norm: gamma (raw - mean) / sqrt(variance + eps) + beta.

    Attributes:
        eps: added to the variance.
        gamma: [C], or none for ones.
        beta: [C], or none for zeros.
    """

    eps: float = 1e-5
    gamma: Tensor | None = None
    beta: Tensor | None = None


@dataclass(frozen=True)
class Zero:
    """The operation `none`."""


@dataclass(frozen=True)
class Skip:
    """The identity; of stride 1 only."""


@dataclass(frozen=True)
class Pool:
    """A 3x3 pool with padding 1 and the call's stride.

    Attributes:
        kind: `avg`, which does not count the padding, or `max`.
        norm: the batch norm behind it, or none.
    """

    kind: Literal["avg", "max"]
    norm: Norm | None = None


@dataclass(frozen=True)
class Stage:
    """ReLU, a depthwise convolution, a 1x1 convolution and a batch norm.

    Attributes:
        depthwise: [C, 1, k, k], k = 3, 5 or 7; the padding keeps the size, dilation * (k - 1) / 2.
        pointwise: [C, C, 1, 1].
        dilation: 1 or 2.
        norm: the batch norm.
    """

    depthwise: Tensor
    pointwise: Tensor
    dilation: int
    norm: Norm


@dataclass(frozen=True)
class SepConv:
    """A separable convolution.

    Attributes:
        stages: one (`dil_conv`) or two (`sep_conv`), of which the first has the call's stride.
    """

    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Given:
    """A term that has been computed already, a factorised reduce for instance.

    Attributes:
        raw: [1 or V, N, C, H', W'].
        norm: the batch norm that it has still to go through, or none.
    """

    raw: Tensor
    norm: Norm | None = None


Branch = Zero | Skip | Pool | SepConv | Given
"""A candidate operation."""


def norms(branches: Sequence[Branch]) -> list[Norm]:
    """All batch norms, in the order of branches, and of stages within a branch."""
    found: list[Norm] = []
    for branch in branches:
        if isinstance(branch, SepConv):
            found += [stage.norm for stage in branch.stages]
        elif isinstance(branch, (Pool, Given)) and branch.norm is not None:
            found.append(branch.norm)
    return found


def with_terms(branch: Branch, change: Callable[[Tensor], Tensor]) -> Branch:
    """The same branch, weights and given terms changed; what belongs to batch norms stays."""
    if isinstance(branch, SepConv):
        changed = (
            replace(stage, depthwise=change(stage.depthwise), pointwise=change(stage.pointwise))
            for stage in branch.stages
        )
        return SepConv(tuple(changed))
    return replace(branch, raw=change(branch.raw)) if isinstance(branch, Given) else branch


def terms(branches: Sequence[Branch]) -> list[Tensor]:
    """All weights and given terms: what has one dtype with x."""
    found: list[Tensor] = []
    for branch in branches:
        if isinstance(branch, SepConv):
            for stage in branch.stages:
                found += [stage.depthwise, stage.pointwise]
        elif isinstance(branch, Given):
            found.append(branch.raw)
    return found


def affine(branches: Sequence[Branch]) -> list[Tensor]:
    """All gammas and betas: what may be float32 beside half precision."""
    return [tensor for norm in norms(branches) for tensor in (norm.gamma, norm.beta) if tensor is not None]
