"""The backend `cuda` on a GPU. Where there is none, test_cuda_emulation.py and test_cuda_build.py remain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_arguments import leave_one_out_tables, masked_cell_args, mixed_sum_args
from op_contract import Close, double, flat, normal
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.backends import cuda
from vpdarts_fast.contract import reference

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not()))


def on_device(value: Any) -> Any:
    """Tensors, also in sequences, on the GPU."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    return [on_device(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("v", "k", "c", "size"), [(1, 3, 16, (32, 32)), (25, 2, 3, (5, 7)), (3, 1, 64, (8, 8))]
)
def test_mixed_sum(
    dtype: torch.dtype, v: int, k: int, c: int, size: tuple[int, int], assert_close: Close
) -> None:
    """Values, statistics and all gradients."""
    args = on_device(mixed_sum_args(v, k, 4, c, size, dtype))
    leaves = [tensor.requires_grad_() for tensor in flat(args)]
    actual = ops.mixed_sum(*args, backend="cuda")
    exact = double([leaf.detach() for leaf in leaves])
    for tensor in exact:
        tensor.requires_grad_()
    xs, raw_1x1, raw_3x3 = (exact[i * k : (i + 1) * k] for i in range(3))
    expected = reference.mixed_sum(xs, raw_1x1, raw_3x3, exact[3 * k], exact[3 * k + 1 :])
    for result, wanted in zip(actual, expected, strict=True):
        assert_close(result.detach(), wanted.detach())
    gradient = on_device(normal(*actual[0].shape, dtype=dtype, seed=900))
    found = torch.autograd.grad(actual[0], leaves, gradient)
    for result, wanted in zip(found, torch.autograd.grad(expected[0], exact, gradient.double()), strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "c", "size"), [(2, 16, (16, 16)), (600, 5, (5, 3)), (0, 8, (4, 4)), (9, 64, (8, 8))]
)
def test_masked_cell(dtype: torch.dtype, n: int, c: int, size: tuple[int, int], assert_close: Close) -> None:
    args = on_device(masked_cell_args(25, n, c, size, dtype))
    args[5] = on_device(leave_one_out_tables(6)[:25].to(dtype))
    assert_close(ops.masked_cell(*args, backend="cuda"), reference.masked_cell(*double(args)))


def test_kernels_run_on_the_current_stream_and_can_be_captured(assert_close: Close) -> None:
    args = on_device(mixed_sum_args(dtype=torch.float32))
    ops.mixed_sum(*args, backend="cuda")  # allocates and loads before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        node, _, _ = ops.mixed_sum(*args, backend="cuda")
    for tensor in flat(args):
        tensor.mul_(2)
    graph.replay()
    assert_close(node, reference.mixed_sum(*double(args))[0])
