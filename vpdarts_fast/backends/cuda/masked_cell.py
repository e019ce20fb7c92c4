"""`masked_cell` on CUDA: which of its two ops serves a call."""

from __future__ import annotations

import torch
from torch import Tensor

_strict = torch.ops.vpdarts_fast.masked_cell
_rounded = torch.ops.vpdarts_fast.masked_cell_tf32


def masked_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """See `vpdarts_fast.contract.reference.masked_cell`. float32 becomes TF32 where PyTorch's products do."""
    rounds = x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    op = _rounded if rounds else _strict
    output: Tensor = op(x, weight_1x1, weight_3x3, mean, variance, alpha, eps)
    return output
