"""The Triton backend. Empty where no Triton kernel can run."""

from vpdarts_fast.backends.triton.availability import device_types, why_not

__all__ = ["device_types", "why_not"]
if why_not() is None:
    from vpdarts_fast.backends.triton.masked_cell import masked_cell
    from vpdarts_fast.backends.triton.mixed_cell import mixed_cell
    from vpdarts_fast.backends.triton.mixed_sum import mixed_sum
    from vpdarts_fast.backends.triton.relu_conv import relu_conv

    __all__ += ["masked_cell", "mixed_cell", "mixed_sum", "relu_conv"]
