"""What a call may be part of beside plain evaluation and one backward pass: the transforms of PyTorch.

Kernels compute values and, in a backward pass, gradients. Whatever else asks for what lies between, tangents
(`torch.func.jvp`, `torch.autograd.forward_ad`), nested gradients (`torch.func.grad`), batches of calls
(`torch.vmap`) and traces (`torch.jit.trace`), gets it from PyTorch's own functions, which know them all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_all_functorch_interpreters
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether the call is within a transform: of `torch.func`, of forward-mode derivatives, or a trace.

    What `torch.compile`, `torch.export` and `make_fx` record is none of them: ops have their rules for these.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


# As `torch.compiler.assume_constant_result` marks it, which would import the compiler: half a second.
in_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def transforms_gradients(gradients: Iterable[Tensor | None]) -> bool:
    """Whether a backward pass that starts from these is transformed itself.

    Batched gradients (`is_grads_batched`) come by an older way than `torch.vmap`, which is seen in them only.
    """
    return in_transform() or any(
        gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)
        for gradient in gradients
    )


def in_plain_vmap(tensors: Iterable[Tensor]) -> bool:
    """Whether the call is within one `torch.vmap`, draws the same for all, and nothing is differentiated.

    It is over none of these tensors.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None:
        return False
    interpreters = retrieve_all_functorch_interpreters()
    return (
        len(interpreters) == 1
        and isinstance(interpreters[0], VmapInterpreter)
        and interpreters[0].randomness() == "same"
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
    )
