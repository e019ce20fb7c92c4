"""The CUDA backend: the kernels of the native extension for NVIDIA GPUs. Empty where they cannot run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpdarts_fast import native


def why_not() -> str | None:
    """Why no CUDA kernel can run here, and what helps; None if they can."""
    if not native.available():
        return native.why_not()
    if not native.build_info()["cuda"]:
        return (
            "the native extension is built without CUDA kernels; with nvcc and a PyTorch for CUDA, "
            "`VPDARTS_CUDA=on make native` builds them or shows what fails"
        )
    return None if torch.cuda.device_count() > 0 else "there is no CUDA device"


def refusal(op: str, tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take a call whose tensors they can; None if they do.

    A lone tensor asks for the backend as such, before there is a cell's input.
    """
    if (
        op == "masked_cell"
        and len(tensors) > 1
        and not torch.ops.vpdarts_fast.masked_cell_fits(tensors[0], tensors[-1])
    ):
        return "a block's shared memory has no room for the cell's values"
    return None


__all__ = []
if why_not() is None:
    from vpdarts_fast.backends.cpu.mixed_sum import (
        mixed_sum,  # one op, whose kernels follow its tensors' device
    )
    from vpdarts_fast.backends.cuda.masked_cell import masked_cell

    __all__ = ["masked_cell", "mixed_sum"]
