"""A pytest plugin: the backend `cuda`, its kernels emulated on CPU tensors, in the op contract's registry.

VPDARTS_EMULATED_LIBRARY names the library, which takes the native extension's place: both define the ops.
"""

from __future__ import annotations

import os
import sys

sys.modules["vpdarts_fast._C"] = None  # type: ignore[assignment]

import torch

from vpdarts_fast import backends
from vpdarts_fast.errors import UserError

torch.ops.load_library(os.environ["VPDARTS_EMULATED_LIBRARY"])

from vpdarts_fast.cpu.masked_cell import masked_cell
from vpdarts_fast.cpu.mixed_sum import mixed_sum

assert backends.BACKENDS[0].missing is not None, UserError("the extension is loaded")
backends.BACKENDS = (
    backends.Backend(
        "cuda",
        {"mixed_sum": mixed_sum, "masked_cell": masked_cell},
        frozenset({"cpu"}),
        frozenset({torch.float32, torch.bfloat16, torch.float16}),
        {"masked_cell": 1},
    ),
    *backends.BACKENDS,
)
