"""`relu_conv` in PyTorch: one ReLU serves every convolution.

raw_e = W_e * relu(x), edge by edge: on a CPU as fast as one convolution with k*C output channels or
faster, and every output is a tensor of its own.
"""

from __future__ import annotations

from vpdarts_fast.contract.reference import relu_conv

__all__ = ["relu_conv"]
