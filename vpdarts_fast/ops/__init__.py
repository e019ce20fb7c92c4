"""The fused ops: one public function each, served by the backend that fits the call."""

from vpdarts_fast.ops.functions.masked_cell import masked_cell
from vpdarts_fast.ops.functions.mixed_cell import mixed_cell
from vpdarts_fast.ops.functions.mixed_op import mixed_op
from vpdarts_fast.ops.functions.mixed_sum import mixed_sum
from vpdarts_fast.ops.functions.relu_conv import relu_conv
from vpdarts_fast.ops.functions.relu_pointwise import relu_pointwise
from vpdarts_fast.ops.functions.residual_block import residual_block
from vpdarts_fast.ops.functions.trained_residual_block import trained_residual_block

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
