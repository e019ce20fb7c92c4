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
    backends = importlib.import_module("vpdarts_fast.backends")
    ops = ("mixed_sum", "masked_cell")
    emulated = backends.Backend(
        "cuda",
        {op: getattr(importlib.import_module(f"vpdarts_fast.cpu.{op}"), op) for op in ops},
        frozenset({"cpu"}),
        frozenset({torch.float32, torch.bfloat16, torch.float16}),
        {},
    )
    backends.BACKENDS = (emulated, *(b for b in backends.BACKENDS if b.name != "cuda"))


register()
