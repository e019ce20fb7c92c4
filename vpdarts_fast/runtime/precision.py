"""How exactly a search computes: float32, float32 with TF32 products, or bfloat16 beside float32.

- fp32: every product of float32 as it is, also where PyTorch's own default is TF32 (cuDNN's convolutions)
- tf32: products of float32 on tensor cores, operands rounded to 10 bits; everything else as fp32
- bf16: activations, and weights as they enter a product, in bfloat16; parameters, alphas, statistics, sums,
  the classifier, the loss and the optimisers in float32
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]


def check_precision(precision: Precision, device: torch.device) -> None:
    """Checks that a device can compute in this precision.

    Raises:
        UserError: it cannot; the message says what it can.
    """
    if precision == "fp32":
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            raise UserError(
                f"--precision {precision} needs tensor cores of compute capability 8.0 or later; "
                f"{torch.cuda.get_device_name(device)} has none: use fp32"
            )
    elif precision == "tf32":
        raise UserError(f"--precision tf32 is for CUDA devices; on {device.type} use fp32 or bf16")


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets PyTorch to a precision while entered, and back to its settings before afterwards.

    Raises:
        UserError: as `check_precision`.
    """
    check_precision(precision, device)
    # The newer settings only: to read an older one after these have changed is an error in PyTorch.
    backends: Any = torch.backends
    products = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with bfloat16_products(device) if precision == "bf16" else nullcontext():
            yield
    finally:
        for product, setting in zip(products, before, strict=True):
            product.fp32_precision = setting


def bfloat16_products(device: torch.device) -> AbstractContextManager[object]:
    """Lets products on the device compute in bfloat16 while entered.

    It does without the cache of weights that `torch.autocast` has, which a CUDA graph cannot capture.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def activation_dtype(precision: Precision) -> torch.dtype:
    """The dtype of activations: bfloat16 in bf16, else float32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 in place of half precision, in which nothing is added up; other dtypes stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x computes in: where `torch.autocast` is on, its dtype, but for float64."""
    if not autocasts(x) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Casts activations and weights of an op, all on one device, to what a convolution would take."""
    if not tensors or not autocasts(tensors[0]):
        return list(tensors)
    return [tensor.to(product_dtype(tensor)) for tensor in tensors]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches `torch.autocast` off while entered, for ops that decide on dtypes themselves.

    Args:
        x: any of the op's tensors; autocast is switched off for its device.
    """
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def autocasts(x: Tensor) -> bool:
    """Whether `torch.autocast` is on where x is."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
