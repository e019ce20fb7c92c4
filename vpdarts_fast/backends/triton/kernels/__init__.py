"""The kernels in Triton's language; they know of pointers and pixels, not of PyTorch."""
