"""Which implementation serves a call of an op, and why the others do not.

Backends are data: adding one is a record in `BACKENDS` and one function per op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.backends import cpu, cuda, pytorch, triton
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.transforms import in_transform
from vpdarts_fast.errors import UserError

FUSED_OPS = (
    "relu_conv",
    "relu_pointwise",
    "mixed_sum",
    "mixed_op",
    "mixed_cell",
    "masked_cell",
    "residual_block",
    "trained_residual_block",
)
"""Every fused op. Each has one function of this name in `ops`, in `reference` and in a backend."""

TRAINING_OPS = ("mixed_cell", "trained_residual_block")
"""What a supernet runs on where batch norms use the batch's own statistics."""
EVALUATION_OPS = ("masked_cell", "residual_block")
"""And where their statistics are fixed."""


@dataclass(frozen=True)
class Backend:
    """One set of implementations of the ops, and what it can serve.

    Attributes:
        name: as the user writes it.
        implementations: op -> function with the signature of `vpdarts_fast.contract.reference`.
        device_types: torch device types it runs on; empty means any.
        dtypes: it computes in, but for the ops of `dtypes_of`.
        node_values: cell op -> how many tensors of a node's size it holds at once for each variant, at the
            peak, in a leave-one-out evaluation.
        node_values_once: the same besides, however many variants there are; none if not given.
        dtypes_of: op -> the dtypes it computes that op in, where they are others.
        in_transforms: ops that it has also within transforms, as those of `torch.func`.
        missing: why it is not there at all, or None.
        refusal: (op, tensors) -> why it cannot serve a call that it could by op, device and dtype, or None.
    """

    name: str
    implementations: Mapping[str, Callable[..., Any]]
    device_types: frozenset[str]
    dtypes: frozenset[torch.dtype]
    node_values: Mapping[str, int]
    node_values_once: Mapping[str, int] = field(default_factory=dict)
    dtypes_of: Mapping[str, frozenset[torch.dtype]] = field(default_factory=dict)
    in_transforms: frozenset[str] = frozenset()
    missing: str | None = None
    refusal: Callable[[str, Sequence[Tensor]], str | None] = lambda op, tensors: None

    def unsupported(self, op: str, tensors: Sequence[Tensor], small: Sequence[Tensor] = ()) -> list[str]:
        """The reasons why this backend cannot serve a call; none if it can. It takes what `serving` takes."""
        if self.missing is not None:
            return [self.missing]
        reasons = []
        if op not in self.implementations:
            reasons.append(f"has no {op}")
        elif op not in self.in_transforms and in_transform():
            reasons.append(f"has no {op} for transforms: torch.func, forward-mode derivatives, jit.trace")
        devices = {tensor.device.type for tensor in (*tensors, *small)}
        if len(devices) > 1:
            reasons.append(f"all tensors must be on one device; got {', '.join(sorted(devices))}")
        if self.device_types and not devices <= self.device_types:
            reasons.append(
                f"runs on {', '.join(sorted(self.device_types))}; got {', '.join(sorted(devices))}"
            )
        dtypes = {tensor.dtype for tensor in tensors}
        beside = {torch.float32} if dtypes <= _HALVES else set()
        dtypes |= {tensor.dtype for tensor in small} - beside
        if len(dtypes) > 1:
            reasons.append(f"all tensors must have one dtype; got {', '.join(sorted(map(str, dtypes)))}")
        able = self.dtypes_of.get(op, self.dtypes)
        if not dtypes <= able:
            computes, got = (", ".join(sorted(map(str, some))) for some in (able, dtypes))
            what = f"computes {op}" if op in self.dtypes_of else "computes"
            reasons.append(f"{what} in {computes}; got {got}")
        refusal = None if reasons else self.refusal(op, (*tensors, *small))
        return reasons if refusal is None else [refusal]


_HALVES = frozenset({torch.bfloat16, torch.float16})
_FLOATS = frozenset({torch.float32, torch.float64}) | _HALVES


def _implementations(module: ModuleType) -> dict[str, Callable[..., Any]]:
    return {op: getattr(module, op) for op in FUSED_OPS if hasattr(module, op)}


BACKENDS = (
    Backend(
        "cpu",
        _implementations(cpu),
        frozenset({"cpu"}),
        frozenset({torch.float32}),
        {"masked_cell": 3, "mixed_cell": 4},
        {"mixed_cell": 12},
        missing=native.why_not(),
    ),
    Backend(
        "cuda",
        _implementations(cuda),
        frozenset({"cuda"}),
        _FLOATS - {torch.float64},
        {"masked_cell": 2},
        missing=cuda.why_not(),
        refusal=cuda.refusal,
    ),
    Backend(
        "triton",
        _implementations(triton),
        triton.device_types(),
        frozenset({torch.float32}) | _HALVES,
        {"masked_cell": 5, "mixed_cell": 17},
        missing=triton.why_not(),
    ),
    Backend(
        "pytorch",
        _implementations(pytorch),
        frozenset(),
        _FLOATS,
        {"masked_cell": 6, "mixed_cell": 15},
        in_transforms=frozenset(FUSED_OPS) - set(EVALUATION_OPS),  # made for values only
    ),
    Backend(
        "reference",
        _implementations(reference),
        frozenset(),
        _FLOATS,
        {"masked_cell": 6, "mixed_cell": 15},
        in_transforms=frozenset(FUSED_OPS),
    ),
)
"""Best first: `auto` takes the first that can serve the call."""


def select(
    op: str, tensors: Sequence[Tensor], backend: str = "auto", small: Sequence[Tensor] = ()
) -> Callable[..., Any]:
    """The function that computes `op` for these arguments; takes and raises what `serving` does."""
    return serving(op, tensors, backend, small).implementations[op]


def serving(
    op: str, tensors: Sequence[Tensor], backend: str = "auto", small: Sequence[Tensor] = ()
) -> Backend:
    """The backend that serves a call of `op` with these tensors.

    Args:
        op: of `FUSED_OPS`.
        tensors: activations and weights, all of one dtype.
        backend: a name, or auto.
        small: alphas and statistics; of the same dtype, or float32 beside half precision.

    Raises:
        UserError: an unknown backend, or none that serves the call, with every backend's reasons.
    """
    complaints = []
    for candidate in named(backend):
        reasons = candidate.unsupported(op, tensors, small)
        if not reasons:
            return candidate
        complaints.append(f"{candidate.name}: {'; '.join(reasons)}")
    raise UserError(f"no backend can serve {op}\n  " + "\n  ".join(complaints))


def named(backend: str) -> list[Backend]:
    """The backend of this name, or all for auto; `UserError` if there is none."""
    backends = [b for b in BACKENDS if isinstance(backend, str) and backend in ("auto", b.name)]
    if not backends:
        shown = repr(backend) if isinstance(backend, str) else f"of type {type(backend).__qualname__}"
        raise UserError(f"unknown backend {shown}; expected auto, {', '.join(b.name for b in BACKENDS)}")
    return backends


def preferred(op: str, backend: str) -> str:
    """What a network that is to run on `backend` asks for: that, for the ops that it has; for others auto."""
    lacks_it = any(b.name == backend and b.missing is None and op not in b.implementations for b in BACKENDS)
    return "auto" if lacks_it else backend
