"""A mixture of candidate operations, and a whole cell, run on `ops` with the modules that a plan names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.acceleration.estimates import Estimate, update_estimates
from vpdarts_fast.acceleration.plans import (
    CellPlan,
    ChainPlan,
    EdgePlan,
    MixturePlan,
    OpPlan,
    OwnMethod,
    Path,
    PointwisePlan,
    PoolPlan,
    SkipPlan,
    ZeroPlan,
    at,
    biases,
    branch,
    norm_paths,
)
from vpdarts_fast.acceleration.probing import partial_channels
from vpdarts_fast.acceleration.shapes import CHANGES, fits
from vpdarts_fast.backends.registry import BACKENDS, preferred
from vpdarts_fast.contract.branches import Given
from vpdarts_fast.contract.derivatives import with_statistics
from vpdarts_fast.runtime.precision import product_dtype
from vpdarts_fast.spaces.norms import update_running_statistics

MAX_NODES = 6
"""Of a cell that `mixed_cell` takes."""


def row_of(weights: Any, plan: MixturePlan, x: Tensor) -> Tensor:
    """The weights of O operations, as a module is called with them, as one tensor [O].

    They come as a tensor, or as a list of numbers and tensors; what is behind the first O is not used.

    Raises:
        OwnMethod: they are something else.
    """
    count = len(plan.ops)
    if isinstance(weights, (list, tuple)) and len(weights) >= count:
        return torch.stack([_as_number(weight, x) for weight in weights[:count]])
    if isinstance(weights, Tensor) and weights.dim() > 0 and len(weights) >= count:
        row = weights[:count]
        if row.numel() == count and row.is_floating_point() and row.device == x.device:
            numbers = (
                row.dim() == 1 and x.dtype.itemsize > 2
            )  # of which PyTorch takes the value, not the dtype
            return row.to(x.dtype) if numbers else row.reshape(count)
    raise OwnMethod


def _as_number(weight: Any, x: Tensor) -> Tensor:
    """One weight of a list, []; `OwnMethod` unless it times x has the dtype of x."""
    if isinstance(weight, Tensor):
        is_number = weight.dim() == 0 and weight.is_floating_point()
        if weight.numel() != 1 or not (is_number or (weight.dtype, weight.device) == (x.dtype, x.device)):
            raise OwnMethod
        weight = weight.reshape(())
    elif not isinstance(weight, (int, float)):
        raise OwnMethod
    return torch.as_tensor(weight, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


class Mixture:
    """A mixed operation's modules for one call, looked up and found to be covered before anything runs.

    Args:
        module: that the plan is of.
        plan: of the mixture.
        x: [1 or V, N, C, H, W], what it will be called with, or of that shape, dtype and device.
        rows: [V, O].
        backend: as `accelerate` takes it.

    Raises:
        OwnMethod: the call is not covered.
    """

    def __init__(self, module: nn.Module, plan: MixturePlan, x: Tensor, rows: Tensor, backend: str) -> None:
        self._backend = backend_for("mixed_op", x, rows, backend)
        self._cell = None
        if (plan.stride, len(plan.ops)) == (1, 5):
            alone = EdgePlan(0, 1, 0, replace(plan, partial=1))
            self._cell = module, CellPlan((), (alone,)), rows[:, None], backend
        pairs = list(zip((at(module, path) for path in plan.ops), plan.plans, strict=True))
        if plan.skips_zeros:
            kept = nonzero_columns(rows)
            pairs, rows = [pairs[o] for o in kept], rows[:, kept]
            if not pairs:
                raise OwnMethod
        channels, size = x.shape[2] // plan.partial, x.shape[3:]
        odd = any(side % plan.stride for side in size)
        if x.shape[2] % plan.partial or (plan.partial > 1 and odd):
            raise OwnMethod("does not divide its input into equal parts")
        if not all(fits(op, kind, channels, size, plan.stride) for op, kind in pairs):
            raise OwnMethod(CHANGES)
        self._ops, self._rows, self._stride, self._partial = pairs, rows, plan.stride, plan.partial
        self._norms = [norm_at(op, path) for op, kind in pairs for path in norm_paths(kind)]
        self._offsets = [bias for op, kind in pairs for bias in biases(op, kind)]
        self._fixed = are_fixed(self._norms, x, rows, module)
        if not self._fixed and x[0].numel() // x.shape[2] < 2 * plan.stride**2:
            raise OwnMethod  # which says what batch norms need

    def __call__(self, x: Tensor) -> Tensor:
        """sum_o rows[v, o] * op_o(x[v]); x [1 or V, N, C, H, W] -> [V, N, C, H', W'].

        Where running statistics are updated, V is 1.
        """
        channels = x.shape[2] // self._partial
        return partial_channels(self._sum(x[:, :, :channels]), x[:, :, channels:], self._partial)

    def _sum(self, x: Tensor) -> Tensor:
        if not self._fixed and (out := self._as_cell(x)) is not None:
            return out
        norms, offsets, rows = self._norms, self._offsets, self._rows
        branches = [branch(op, kind, x, self._stride, self._backend) for op, kind in self._ops]
        statistics = fixed_statistics(norms, offsets) if self._fixed and norms else None
        if not self._fixed:
            rows = with_zero_gradients(rows, offsets)

        def keep(out: Tensor, mean: Tensor, variance: Tensor) -> None:
            if not self._fixed:
                different = max([len(x), *(len(b.raw) for b in branches if isinstance(b, Given))])
                update(norms, offsets, mean[:different], variance[:different], out[0])

        return with_statistics(
            lambda: ops.mixed_op(x, rows, branches, self._stride, statistics, backend=self._backend), keep
        )

    def _as_cell(self, x: Tensor) -> Tensor | None:
        """The same as a cell of two nodes, whose convolutions are native too; None for other operations."""
        if self._cell is None:
            return None
        module, plan, alpha, backend = self._cell
        try:
            return whole_cell(module, plan, x, alpha, backend)
        except OwnMethod:
            return None


def nonzero_columns(rows: Tensor) -> list[int]:
    """The numbers of the columns of rows [V, O] that are not zero for all V."""
    return [o for o, column in enumerate(rows.T.tolist()) if any(column)]


def _skips(plan: MixturePlan, rows: Tensor) -> bool:
    """Whether an operation is not run, whose statistics stay as they are then."""
    return plan.skips_zeros and len(nonzero_columns(rows)) < len(plan.ops)


def whole_cell(module: nn.Module, plan: CellPlan, x: Tensor, alpha: Tensor, backend: str) -> Tensor | None:
    """The last node [V, N, C, H, W], of x [1 or V, N, C, H, W] and alpha [V, E, O].

    Edges are in the order of the plan. None where the cell is not as `mixed_cell` and `masked_cell` have it.
    """
    fives = _fives(module, plan)
    if fives is None:
        return None
    columns, pairs = zip(*fives, strict=True)
    norms = [norm for pair in pairs for _, norm in pair]
    fixed = are_fixed(norms, x, alpha, module)
    if not fixed and any(_skips(edge.mixture, alpha[:, e]) for e, edge in enumerate(plan.edges)):
        return None
    convolutions = [conv for pair in pairs for conv, _ in pair]
    channels = x.shape[2]
    if any(conv.weight.shape[:2] != (channels, channels) for conv in convolutions):
        return None
    if any(order != columns[0] for order in columns):
        alpha = torch.stack([alpha[:, e, order] for e, order in enumerate(columns)], 1)
    elif columns[0] != [0, 1, 2, 3, 4]:
        alpha = alpha[:, :, columns[0]]
    if fixed:
        return _masked_cell(x, alpha, convolutions, norms, backend)
    if not _are_plain(norms) or x[0].numel() // channels < 2:
        return None
    backend = backend_for("mixed_cell", x, alpha, backend)
    offsets = [conv.bias for conv in convolutions]
    weight_1x1, weight_3x3 = (torch.stack([c.weight for c in convolutions[first::2]]) for first in (0, 1))
    table, eps = with_zero_gradients(alpha, offsets), norms[0].eps

    def keep(_: Tensor, mean: Tensor, variance: Tensor) -> None:
        update(norms, offsets, mean.flatten(1, 2), variance.flatten(1, 2), x[0])

    return with_statistics(
        lambda: ops.mixed_cell(x, weight_1x1, weight_3x3, table, eps=eps, backend=backend), keep
    )


def trains_natively(module: nn.Module, plan: CellPlan) -> bool:
    """Whether `mixed_cell` takes the cell in training mode, its convolutions too."""
    fives = _fives(module, plan)
    return fives is not None and _are_plain([norm for _, pairs in fives for _, norm in pairs])


def _are_plain(norms: Sequence[nn.BatchNorm2d]) -> bool:
    """Whether batch norms are those of `mixed_cell`."""
    return all(norm.weight is None and norm.bias is None and norm.eps == norms[0].eps for norm in norms)


def _masked_cell(
    x: Tensor,
    alpha: Tensor,
    convolutions: Sequence[nn.Conv2d],
    norms: Sequence[nn.BatchNorm2d],
    backend: str,
) -> Tensor:
    """`whole_cell` with fixed statistics; convolutions and norms of the edges in turn, 1x1 before 3x3.

    gamma (W r - m) / s + beta = ((gamma W) r - (gamma m - beta s)) / s
    """
    backend = backend_for("masked_cell", x, alpha, backend)
    mean, variance = fixed_statistics(norms, [conv.bias for conv in convolutions]).unbind(-2)
    weights = [conv.weight for conv in convolutions]
    eps = norms[0].eps
    variance = variance + torch.stack([variance.new_tensor(norm.eps - eps) for norm in norms])[:, None]
    if any(norm.weight is not None for norm in norms):
        gamma = torch.stack(
            [mean.new_ones(mean.shape[-1]) if norm.weight is None else norm.weight for norm in norms]
        )
        beta = torch.stack(
            [mean.new_zeros(mean.shape[-1]) if norm.bias is None else norm.bias for norm in norms]
        )
        weights = [weight * scale[:, None, None, None] for weight, scale in zip(weights, gamma, strict=True)]
        mean = gamma * mean - beta * torch.sqrt(variance + eps)
    shape = *mean.shape[:-2], len(norms) // 2, 2, -1
    return ops.masked_cell(
        x,
        torch.stack(weights[0::2]),
        torch.stack(weights[1::2]),
        mean.reshape(shape),
        variance.reshape(shape),
        alpha,
        eps,
        backend=backend,
    )


Five = tuple[list[int], list[tuple[nn.Conv2d, nn.BatchNorm2d]]]
"""Where none, skip, 1x1, 3x3 and pool are among five operations, and both convolutions with their norms."""


def _fives(module: nn.Module, plan: CellPlan) -> list[Five] | None:
    """Of all edges; None for a cell that is not complete, or has other operations, or too many nodes."""
    nodes = max(edge.target for edge in plan.edges) + 1
    complete = [(j, i) for i in range(1, nodes) for j in range(i)]
    if nodes > MAX_NODES or [(edge.source, edge.target) for edge in plan.edges] != complete:
        return None
    fives = [_five(module, edge.mixture) for edge in plan.edges]
    return None if None in fives else [five for five in fives if five is not None]


def _five(module: nn.Module, plan: MixturePlan) -> Five | None:
    """None for other operations."""
    places: dict[str, int] = {}
    convolutions: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}
    for o, (path, kind) in enumerate(zip(plan.ops, plan.plans, strict=True)):
        op = at(module, path)
        name, conv = _name_of(op, kind)
        places[name] = o
        if conv is not None and isinstance(kind, (ChainPlan, PointwisePlan)):
            convolutions[name] = conv, norm_at(op, kind.norm)
    names = ["none", "skip", "1x1", "3x3", "pool"]
    if (plan.stride, plan.partial, len(plan.ops)) != (1, 1, 5) or set(places) != set(names):
        return None
    return [places[name] for name in names], [convolutions["1x1"], convolutions["3x3"]]


def _name_of(op: nn.Module, plan: OpPlan) -> tuple[str, nn.Conv2d | None]:
    if isinstance(plan, ZeroPlan):
        return "none", None
    if isinstance(plan, SkipPlan):
        return "skip", None
    if isinstance(plan, PoolPlan) and plan.kind == "avg" and plan.norm is None:
        return "pool", None
    if isinstance(plan, PointwisePlan) and len(plan.convolutions) == 1:
        conv = at(op, plan.convolutions[0])
        assert isinstance(conv, nn.Conv2d)
        return "1x1", conv
    if isinstance(plan, ChainPlan) and len(plan.layers) == 2:
        relu, conv = (at(op, layer) for layer in plan.layers)
        if isinstance(relu, nn.ReLU) and isinstance(conv, nn.Conv2d):
            size = conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.padding_mode
            if size == ((3, 3), (1, 1), (1, 1), 1, "zeros"):
                return "3x3", conv
    return "other", None


def norm_at(op: nn.Module, path: Path) -> nn.BatchNorm2d:
    """The batch norm at the end of a path."""
    norm = at(op, path)
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def backend_for(op: str, x: Tensor, row: Tensor, backend: str) -> str:
    """The backend for a call; auto chooses only what is faster than the modules themselves."""
    if row.dtype != x.dtype and not (x.dtype.itemsize == 2 and row.dtype == torch.float32):
        raise OwnMethod
    if backend != "auto":
        return preferred(op, backend)
    product = x[:0].to(product_dtype(x))  # as the op will see it where autocast is on
    for candidate in BACKENDS:
        if candidate.name not in ("pytorch", "reference") and not candidate.unsupported(op, [product], [row]):
            return candidate.name
    raise OwnMethod


def is_served(op: str, tensor: Tensor, backend: str) -> bool:
    """Whether a backend would serve a call with tensors of this dtype and device."""
    try:
        backend_for(op, tensor, tensor, backend)
    except OwnMethod:
        return False
    return True


def are_fixed(norms: Sequence[nn.BatchNorm2d], x: Tensor, row: Tensor, module: nn.Module) -> bool:
    """Whether batch norms use their running statistics.

    Raises:
        OwnMethod: some do and others do not, or they do where gradients are wanted.
    """
    fixed = {not norm.training and norm.running_mean is not None for norm in norms}
    if len(fixed) > 1:
        raise OwnMethod
    differentiated = fixed == {True} and torch.is_grad_enabled()
    if differentiated and any(tensor.requires_grad for tensor in (x, row, *module.parameters())):
        raise OwnMethod
    return fixed == {True}


def fixed_statistics(norms: Sequence[nn.BatchNorm2d], offsets: Sequence[Tensor | None]) -> Tensor:
    """Running mean and variance of M batch norms, of the values before the offsets are added.

    Args:
        norms: M batch norms.
        offsets: what is added in front of each, a convolution's bias [C], or none.

    Returns:
        [M, 2, C]; [V, M, 2, C] where variants have statistics of their own.
    """
    pairs = []
    for norm, offset in zip(norms, offsets, strict=True):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        pairs.append(torch.stack([mean if offset is None else mean - offset, variance], -2))
    largest = max(pairs, key=Tensor.dim)
    return torch.stack([pair.expand_as(largest) for pair in pairs], -3)


def update(
    norms: Sequence[nn.BatchNorm2d],
    offsets: Sequence[Tensor | None],
    mean: Tensor,
    variance: Tensor,
    out: Tensor,
) -> None:
    """Updates running statistics as batch norms in training mode do.

    Args:
        norms: M batch norms.
        offsets: what is added in front of each, [C], or none.
        mean: [V, M, C], of the values before the offsets are added; V is 1 but for estimates.
        variance: [V, M, C], biased.
        out: a tensor of one variant, of the size of what they normalise.
    """
    tracking = [m for m, norm in enumerate(norms) if norm.training and norm.track_running_stats]
    if not tracking:
        return
    if any(offset is not None for offset in offsets):
        added = [mean.new_zeros(mean.shape[2]) if offset is None else offset.detach() for offset in offsets]
        mean = mean + torch.stack(added)
    estimates = [m for m in tracking if isinstance(norms[m].running_mean, Estimate)]
    if estimates:
        update_estimates([norms[m] for m in estimates], mean[:, estimates], variance[:, estimates], out)
        return
    if len(tracking) < len(norms):
        mean, variance = mean[:, tracking], variance[:, tracking]
    update_running_statistics([norms[m] for m in tracking], mean[0], variance[0], out)


def with_zero_gradients(weights: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """The same weights, of which the offsets get a gradient: zero, as in front of a batch norm."""
    trained = [offset for offset in offsets if offset is not None and offset.requires_grad]
    if not trained or not torch.is_grad_enabled():
        return weights
    return weights + 0 * torch.cat(trained).sum().to(weights.dtype)
