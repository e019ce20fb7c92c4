"""How ops with a backward pass of their own are differentiated.

Gradients come from that backward pass. Where they may be differentiated in turn (`create_graph=True`, as for
products with the Hessian), come in batches (`is_grads_batched`) or have tangents, they come from the same
function in PyTorch. Within the transforms of `torch.func` and the like, no op with a backward pass of its own
is called at all (`vpdarts_fast.contract.transforms`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import _StopRecomputationError

from vpdarts_fast.contract.transforms import transforms_gradients
from vpdarts_fast.runtime.precision import without_autocast

Backward = Callable[[Sequence[Any], Sequence[Tensor], Sequence[Any], Sequence[Any]], Sequence[Any]]
"""Of the op's arguments, its outputs that are kept, the gradients of the others, and which arguments'
gradients are wanted (of a list of tensors a list of bool): those of all arguments that can have one."""


def register(
    op: Any, arguments: Sequence[int], backward: Backward, plain: Callable[..., Any], outputs: int = 1
) -> None:
    """Makes an op differentiable.

    Args:
        op: its name, or a custom op.
        arguments: places of those that have gradients: tensors and lists of tensors.
        backward: the op's own backward pass.
        plain: the same function of the same arguments in PyTorch; returns the first outputs of the op.
        outputs: how many of the op's outputs, tensors or lists of them, have gradients; the others are kept
            for the backward pass and have none.
    """

    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Any]) -> None:
        saved: list[Tensor] = []

        def save(tensor: Tensor) -> _Saved:
            saved.append(tensor)
            return _Saved(len(saved) - 1)

        ctx.inputs = _replaced(inputs, Tensor, save)
        kept = _flat(output[outputs:])
        ctx.count = len(saved)
        ctx.save_for_backward(*saved, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*kept)

    def differentiate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        # In place of a list of tensors, and of an empty list, autograd wants a list.
        result: list[Any] = [None if isinstance(need, bool) else [None] * len(need) for need in needs]
        if all(gradient is None for gradient in _flat(gradients[:outputs])):
            return tuple(result)
        tensors = ctx.saved_tensors
        inputs = _replaced(ctx.inputs, _Saved, lambda saved: tensors[saved.index])
        wants = [needs[place] for place in arguments]
        if torch.is_grad_enabled() or transforms_gradients(_flat(gradients)):
            computed: Sequence[Any] = _by_pytorch(plain, inputs, gradients[:outputs], arguments, wants)
        else:
            computed = backward(inputs, tensors[ctx.count :], gradients[:outputs], wants)
        for place, gradient, want in zip(arguments, computed, wants, strict=True):
            if isinstance(want, bool):
                result[place] = gradient if want else None
            else:
                result[place] = [
                    part if wanted else None for part, wanted in zip(gradient, want, strict=True)
                ]
        return tuple(result)

    torch.library.register_autograd(op, differentiate, setup_context=setup_context)


@dataclass(frozen=True)
class _Saved:
    """In the place of a tensor among arguments."""

    index: int


def _replaced(values: Sequence[Any], kind: type, change: Callable[[Any], Any]) -> list[Any]:
    """The same arguments, with what is of this kind changed, in lists too."""
    replaced = []
    for value in values:
        if isinstance(value, kind):
            value = change(value)
        elif isinstance(value, (list, tuple)):
            value = _replaced(value, kind, change)
        replaced.append(value)
    return replaced


def _flat(values: Sequence[Any]) -> list[Any]:
    """What is in nested lists."""
    flat = []
    for value in values:
        flat += _flat(value) if isinstance(value, (list, tuple)) else [value]
    return flat


def with_statistics(
    op: Callable[[], tuple[Tensor, Tensor, Tensor]], keep: Callable[[Tensor, Tensor, Tensor], None]
) -> Tensor:
    """The output of an op that returns (output, mean, variance), all three of them handed to `keep`.

    Checkpointing that is not reentrant ends its second forward pass as soon as the last tensor is saved, in
    the middle of an op. A batch norm has counted the batch by then, so `keep` is called there too.
    """
    try:
        output, mean, variance = op()
    except _StopRecomputationError:
        with torch.no_grad():
            keep(*op())
        raise
    keep(output, mean, variance)
    return output


def _by_pytorch(
    plain: Callable[..., Any],
    inputs: Sequence[Any],
    gradients: Sequence[Any],
    arguments: Sequence[int],
    wants: Sequence[Any],
) -> list[Any]:
    """Gradients that can be differentiated, of views of the arguments: they may depend on one another."""
    views: list[Tensor] = []

    def view(value: Any, want: Any) -> Any:
        if isinstance(want, bool):
            if not want:
                return value
            views.append(value.view_as(value))
            return views[-1]
        return list(map(view, value, want))

    viewed = list(inputs)
    with torch.enable_grad():
        for place, want in zip(arguments, wants, strict=True):
            viewed[place] = view(inputs[place], want)
        with without_autocast(views[0]):
            outputs = plain(*viewed)
        pairs = zip(_flat([outputs]), _flat(gradients), strict=True)
        values, arriving = zip(*((v, g) for v, g in pairs if g is not None), strict=True)
        computed = torch.autograd.grad(values, views, arriving, create_graph=True, allow_unused=True)
    return list(_in_place_of(wants, iter(computed)))


def _in_place_of(wants: Sequence[Any], gradients: Iterator[Tensor | None]) -> Iterator[Any]:
    """Gradients of all that is wanted, in the form of `wants`."""
    for want in wants:
        if isinstance(want, bool):
            yield next(gradients) if want else None
        else:
            yield list(_in_place_of(want, gradients))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient with respect to the parameters.

    Fused operations compute every gradient that a tensor may have, whether it is asked for or not.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def for_second_derivatives(module: nn.Module) -> AbstractContextManager[None]:
    """Within, a supernet that can runs module by module, whether it is fused or not.

    Second derivatives of a fused op are those of the same function in PyTorch, which is then computed anew
    for each product with them; the modules keep what they have computed.
    """
    plain: Callable[[], AbstractContextManager[None]] = getattr(module, "plain", nullcontext)
    return plain()
