"""What stands in front of a DARTS cell: ReLU, 1x1 convolutions and a batch norm, run on `ops`."""

from __future__ import annotations

from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.acceleration.plans import (
    OwnMethod,
    PointwisePlan,
    PreprocessPlan,
    Unrecognised,
    biases,
    branch,
)
from vpdarts_fast.acceleration.recognise_op import recognise_op
from vpdarts_fast.acceleration.run import (
    are_fixed,
    backend_for,
    fixed_statistics,
    norm_at,
    update,
    with_zero_gradients,
)
from vpdarts_fast.acceleration.shapes import has_channels, pointwise_channels
from vpdarts_fast.acceleration.snapshot import instance_methods, remembered
from vpdarts_fast.acceleration.vmap import batched_statistics, of_variants
from vpdarts_fast.contract.branches import Given
from vpdarts_fast.contract.derivatives import with_statistics

LAYERS = (nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ConstantPad2d)
"""Of which it may be made."""


@remembered
def recognise_preprocess(module: nn.Module) -> PreprocessPlan:
    """Finds out whether a module is ReLU, a 1x1 convolution or a factorised reduce, and a batch norm.

    Raises:
        Unrecognised: it is something else.
    """
    layers = [type(layer) for layer in module.modules() if not list(layer.children())]
    if not 3 <= len(layers) <= 5 or not {nn.Conv2d, nn.BatchNorm2d} <= set(layers) <= set(LAYERS):
        raise Unrecognised
    plan = recognise_op(module)
    if not isinstance(plan, PointwisePlan):
        raise Unrecognised
    if any(map(instance_methods, module.modules())):
        raise Unrecognised("has a layer with a method of its own, not that of its class")
    return PreprocessPlan(plan)


def preprocess(module: nn.Module, plan: PreprocessPlan, x: Tensor, backend: str) -> Tensor:
    """The module's output [N, C_out, H / stride, W / stride] for `x` [N, C, H, W], computed by `ops`.

    Raises:
        OwnMethod: the call is not covered; the module's own method serves it.
    """
    norm, offsets = norm_at(module, plan.op.norm), list(biases(module, plan.op))
    channels = pointwise_channels(module, plan.op, x.shape[1], x.shape[2:])
    if channels is None or not has_channels(norm, channels):
        raise OwnMethod("has convolutions of other numbers of channels")
    fixed = are_fixed([norm], x, x, module)
    if not fixed and x.numel() // x.shape[1] < 2 * plan.op.stride**2:
        raise OwnMethod  # which says what batch norms need

    def of_all(x: Tensor) -> Tensor:
        """Of `x` [1 or V, N, C, H, W], with a batch norm's statistics of each variant or of all."""
        multiplying, normalising = (backend_for(op, x, x, backend) for op in ("relu_pointwise", "mixed_op"))
        given = branch(module, plan.op, x, plan.op.stride, multiplying)
        assert isinstance(given, Given)
        statistics = fixed_statistics([norm], offsets) if fixed else None
        variants = len(x) if statistics is None or statistics.dim() == 3 else len(statistics)
        one = with_zero_gradients(x.new_ones(variants, 1), () if fixed else offsets)

        def keep(out: Tensor, mean: Tensor, variance: Tensor) -> None:
            if not fixed:
                update([norm], offsets, mean, variance, out[0])

        return with_statistics(
            lambda: ops.mixed_op(
                given.raw.detach(), one, [given], statistics=statistics, backend=normalising
            ),
            keep,
        )

    return of_variants(of_all, x, batched=batched_statistics(module))
