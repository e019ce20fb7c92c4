"""Whether Triton kernels can run here, and on what."""

from __future__ import annotations

import importlib.util
import os

import torch


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 asks for the interpreter, which runs kernels on CPU tensors; for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def device_types() -> frozenset[str]:
    """The torch device types that kernels run on."""
    return frozenset({"cpu" if interpreted() else "cuda"})


def why_not() -> str | None:
    """One message that says why no kernel can run here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; PyTorch for CUDA on Linux brings it"
    if not interpreted() and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None
