"""The PyTorch backend: the fused ops through exact algebra, on any device PyTorch has."""

from vpdarts_fast.backends.pytorch.masked_cell import masked_cell
from vpdarts_fast.backends.pytorch.mixed_cell import mixed_cell
from vpdarts_fast.backends.pytorch.mixed_op import mixed_op
from vpdarts_fast.backends.pytorch.mixed_sum import mixed_sum
from vpdarts_fast.backends.pytorch.relu_conv import relu_conv
from vpdarts_fast.backends.pytorch.relu_pointwise import relu_pointwise
from vpdarts_fast.backends.pytorch.residual_block import residual_block
from vpdarts_fast.backends.pytorch.trained_residual_block import trained_residual_block

__all__ = [
    "masked_cell",
    "mixed_cell",
    "mixed_op",
    "mixed_sum",
    "relu_conv",
    "relu_pointwise",
    "residual_block",
    "trained_residual_block",
]
