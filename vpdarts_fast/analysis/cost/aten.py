"""What PyTorch's own ops cost on a GPU.

Launches are read out of PyTorch's sources (aten/src/ATen/native/cuda), and where these choose among ways, the
fewest: so eager PyTorch comes off rather too well. A convolution or a product of matrices counts as one
kernel, though cuDNN and cuBLAS at times start a second one that transposes or adds up. Bytes are those of
every tensor read and written, once; products are PyTorch's own count (torch.utils.flop_counter), and anything
else is one operation an element. An op that is not listed is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from vpdarts_fast.analysis.cost.work import Uncountable, Work, total_size


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FREE = _names(
    "alias as_strided_ detach detach_ empty empty_like empty_strided lift_fresh new_empty new_empty_strided "
    "_reshape_alias _unsafe_view"
)
"""Beside views: only memory is allocated, which PyTorch's allocator has."""

WRITERS = _names(
    "arange fill fill_diagonal full full_like new_full new_ones new_zeros normal ones ones_like rand "
    "randint randn random uniform zero zeros zeros_like"
)
"""One kernel that writes its output and reads nothing."""

MAPS = _names(
    "abs add addcdiv addcmul avg_pool2d avg_pool2d_backward bitwise_and bitwise_or bitwise_right_shift "
    "bitwise_xor clamp clone div eq exp ge gt index_select isfinite le lerp log _log_softmax "
    "_log_softmax_backward_data lt masked_fill maximum minimum mul native_dropout "
    "native_dropout_backward ne neg nll_loss_forward pow reciprocal relu repeat __rshift__ rsqrt sqrt sub "
    "threshold_backward where"
)
"""One kernel: every input is read, every output written."""

REDUCTIONS = _names("all amax amin any argmax argmin linalg_vector_norm max mean min sum var_mean")
"""One kernel likewise; a second stage runs in the same launch (Reduce.cuh)."""

TENSORS_OF_A_LAUNCH = (770, 448, 336, 252, 210)
"""How many of a list of tensors one launch takes, by the number of lists (MultiTensorApply.cuh)."""

INPUTS_OF_A_CAT = 128
"""Shape.cu, CAT_ARRAY_BATCH_SIZE."""


def cost(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Work | None:
    """The work of a call on device tensors; None if it starts nothing.

    Raises:
        Uncountable: an op that is not listed here.
    """
    name = func._schema.name.partition("::")[2]
    if func.is_view or name in FREE:
        return None
    name = name if name.startswith("__") else name.removesuffix("_")
    if name in SPECIAL:
        return SPECIAL[name](args, out)
    inputs, outputs = tensors((args, kwargs)), tensors(out)
    elements = sum(tensor.numel() for tensor in outputs)
    if name in WRITERS:
        return Work(name, 1, total_size(outputs))
    if name == "copy":
        return Work(name, 1, total_size(inputs[1:]) + total_size(outputs))
    if name.startswith(("_foreach", "_fused")):
        return _foreach(name, args, outputs)
    if name in MAPS:
        return Work(name, 1, total_size((*inputs, *outputs)), elements)
    if name in REDUCTIONS:
        return Work(name, 1, total_size((*inputs, *outputs)), sum(tensor.numel() for tensor in inputs))
    if func.overloadpacket in flop_registry:
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return Work(name, 1, total_size((*inputs, *outputs)), flops, "matrix")
    raise Uncountable(f"the cost model does not know what {func} launches on a GPU")


def is_factory(func: torch._ops.OpOverload) -> bool:
    """Whether the result depends on the shapes and types of its arguments only."""
    return func._schema.name.partition("::")[2] in WRITERS and not func._schema.is_mutable


def is_uninitialised(func: torch._ops.OpOverload) -> bool:
    """Whether the result holds whatever was in memory."""
    return "empty" in func._schema.name


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested sequences and dicts; `tree_leaves` takes many times as long."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def _convolution_backward(args: Sequence[Any], out: Any) -> Work:
    """The gradients of input, weight and bias, each a kernel of its own that reads what it needs."""
    gradient, x, weight, *_, wanted = args
    needs = ((gradient, weight), (gradient, x), (gradient,))
    pairs = [(need, result) for need, result in zip(needs, out, strict=True) if result is not None]
    convolution = torch.ops.aten.convolution_backward
    flops = flop_registry[convolution](*args[:-1], wanted, out_val=out)
    moved = sum(total_size((*need, result)) for need, result in pairs)
    return Work("convolution_backward", len(pairs), moved, flops, "matrix")


def _batch_norm(args: Sequence[Any], out: Any) -> Work:
    """Statistics, what the running ones become and 1 / deviation, the output (Normalization.cu).

    cuDNN does that in one kernel where there are a weight and a bias and no half precision
    (Normalization.cpp, _select_batch_norm_backend). The statistics read the input a first time.
    """
    x, weight, bias, _, _, training, *_ = args
    cudnn = weight is not None and bias is not None and x.dtype == torch.float32
    passes = (x, x, out[0]) if training else (x, out[0])
    return Work("batch_norm", 1 if cudnn else 3, total_size(passes), 5 * x.numel())


def _batch_norm_backward(args: Sequence[Any], out: Any) -> Work:
    """One kernel reduces and maps, by cuDNN or for contiguous tensors; two for channels last."""
    gradient, x, weight, *_, wanted = args
    cudnn = weight is not None and x.dtype == torch.float32 and wanted[2]
    launches = 1 if cudnn or x.is_contiguous() else 2
    return Work(
        "batch_norm_backward", launches, total_size((gradient, x, gradient, x, out[0])), 8 * x.numel()
    )


def _concatenation(args: Sequence[Any], out: Any) -> Work:
    return Work("cat", math.ceil(len(args[0]) / INPUTS_OF_A_CAT), total_size((*args[0], out)))


def _conversion(args: Sequence[Any], out: Any) -> Work | None:
    """To another dtype or device; to neither only where PyTorch takes the tensor to lie elsewhere."""
    (x,) = args
    if (x.dtype, x.device, x.stride()) == (out.dtype, out.device, out.stride()):
        return None
    return Work("to", 1, total_size((x, out)))


def _scatter(name: str) -> Callable[[Sequence[Any], Any], Work]:
    """Zeros, then the gradient in its place."""
    return lambda args, out: Work(name, 2, total_size((out, args[0], args[0])))


def _index(args: Sequence[Any], out: Any) -> Work:
    """Indices that lie on the host are copied first."""
    indices = args[1]
    copies = sum(index is not None and index.device.type == "cpu" for index in indices)
    return Work("index", 1 + copies, 2 * total_size((out,)) + total_size(indices))


def _foreach(name: str, args: Sequence[Any], outputs: Sequence[Tensor]) -> Work:
    """Lists of tensors, as many at a time as a launch takes. A norm has zeros before and a sum after it."""
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and tensors(arg)]
    norm = name == "_foreach_norm"
    depth = len(lists) + (len(outputs) > 0 and not norm)  # in place there are none
    launches = math.ceil(len(lists[0]) / TENSORS_OF_A_LAUNCH[depth - 1]) + 2 * norm
    read = [tensor for some in lists for tensor in some]
    elements = sum(tensor.numel() for tensor in lists[0])
    return Work(name, launches, total_size((*read, *(outputs or lists[0]))), elements)


SPECIAL: dict[str, Callable[[Sequence[Any], Any], Work | None]] = {
    "_to_copy": _conversion,
    "cat": _concatenation,
    "stack": _concatenation,
    "convolution_backward": _convolution_backward,
    "index": _index,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "nll_loss_backward": lambda args, out: Work("nll_loss_backward", 2, 2 * total_size((out,))),
    "select_backward": _scatter("select_backward"),
    "slice_backward": _scatter("slice_backward"),
}
"""What has a rule of its own."""
