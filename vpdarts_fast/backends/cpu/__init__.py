"""The CPU backend: the ops of the native extension. Empty where the extension is missing."""

from vpdarts_fast import native

__all__ = []
if native.available():
    from vpdarts_fast.backends.cpu.masked_cell import masked_cell
    from vpdarts_fast.backends.cpu.mixed_cell import mixed_cell
    from vpdarts_fast.backends.cpu.mixed_op import mixed_op
    from vpdarts_fast.backends.cpu.mixed_sum import mixed_sum
    from vpdarts_fast.backends.cpu.relu_conv import relu_conv
    from vpdarts_fast.backends.cpu.relu_pointwise import relu_pointwise
    from vpdarts_fast.backends.cpu.residual_block import residual_block
    from vpdarts_fast.backends.cpu.trained_residual_block import trained_residual_block

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
