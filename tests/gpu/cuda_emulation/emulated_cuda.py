"""A pytest plugin: the backend `cuda`, its kernels emulated on CPU tensors, in the op contract's registry.

VPDARTS_EMULATED_LIBRARY names the library, which takes the native extension's place: both define the ops.
"""

from __future__ import annotations

import importlib
import os
import sys

import torch


def register() -> None:
    """To be called before anything else imports vpdarts_fast."""
    sys.modules["vpdarts_fast._C"] = None  # type: ignore[assignment]
    torch.ops.load_library(os.environ["VPDARTS_EMULATED_LIBRARY"])
    registry = importlib.import_module("vpdarts_fast.backends.registry")
    ops = ("mixed_sum", "masked_cell")
    emulated = registry.Backend(
        "cuda",
        {op: getattr(importlib.import_module(f"vpdarts_fast.backends.cpu.{op}"), op) for op in ops},
        frozenset({"cpu"}),
        frozenset({torch.float32, torch.bfloat16, torch.float16}),
        {},
    )
    registry.BACKENDS = (emulated, *(b for b in registry.BACKENDS if b.name != "cuda"))


register()
