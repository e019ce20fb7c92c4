"""The fused ops: one public function each, served by the backend that fits the call."""

from vpdarts_fast.ops.masked_cell import masked_cell
from vpdarts_fast.ops.mixed_cell import mixed_cell
from vpdarts_fast.ops.mixed_op import mixed_op
from vpdarts_fast.ops.mixed_sum import mixed_sum
from vpdarts_fast.ops.relu_conv import relu_conv
from vpdarts_fast.ops.residual_block import residual_block
from vpdarts_fast.ops.trained_residual_block import trained_residual_block

__all__ = [
    "masked_cell",
    "mixed_cell",
    "mixed_op",
    "mixed_sum",
    "relu_conv",
    "residual_block",
    "trained_residual_block",
]
