"""The emulated CUDA kernels against the reference, beyond the op contract: run by test_cuda_emulation.py."""

from __future__ import annotations

import ctypes
import os
from itertools import product
from typing import Any

import pytest
import torch
from op_arguments import leave_one_out_tables, masked_cell_args, mixed_sum_args
from op_contract import Close, double, flat, normal
from torch import Tensor

from vpdarts_fast.analysis.cost.kernels import cuda_masked_cell, cuda_masked_cell_fits
from vpdarts_fast.analysis.cost.roofline import GPUS
from vpdarts_fast.contract import reference

HALVES = (torch.bfloat16, torch.float16)
SCHEDULES = ("forward", "reverse", "random:1", "random:2", "random:3")

cuda = torch.ops.vpdarts_fast


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every order in which the emulation runs threads and blocks."""
    monkeypatch.setenv("VPDARTS_EMULATION_SCHEDULE", request.param)


def wide(args: list[Any]) -> list[Any]:
    """The same, all but the activations in float32, as in mixed precision."""
    return [arg.float() if isinstance(arg, Tensor) else arg for arg in args]


def check_mixed_sum(args: list[Any], assert_close: Close) -> None:
    """The node, its statistics and all gradients."""
    eps = 1e-5
    gradient = normal(*args[0][0].shape, dtype=args[0][0].dtype, seed=900)
    node, mean, variance = cuda.mixed_sum(*args, eps)
    leaves = [tensor.requires_grad_() for tensor in flat(double(args))]
    k = len(args[0])
    given = [leaves[:k], leaves[k : 2 * k], leaves[2 * k : 3 * k], leaves[3 * k], leaves[3 * k + 1 :]]
    expected = reference.mixed_sum(*given, eps)
    for actual, wanted in zip((node, mean, variance), expected, strict=True):
        assert_close(actual, wanted.detach())
    assert mean.dtype == variance.dtype == args[3].dtype
    wants = [[True] * k] * 3 + [True, [True] * len(args[4])]
    found = cuda.mixed_sum_backward(gradient, *args, eps, mean, variance, *wants)
    exact = torch.autograd.grad(expected[0], leaves, gradient.double())
    for actual, wanted in zip(flat(list(found)), exact, strict=True):
        assert_close(actual, wanted)


@pytest.mark.usefixtures("schedule")
def test_mixed_sum_schedules(assert_close: Close) -> None:
    """Of so many channels that their sum takes more than half a warp; a reduction's rows are odd."""
    check_mixed_sum(mixed_sum_args(v=2, k=2, n=4, c=20, size=(9, 7), dtype=torch.float32), assert_close)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("c", "size"), [(8, (6, 5)), (12, (5, 3)), (24, (4, 4))])
def test_mixed_sum_in_half_precision(
    dtype: torch.dtype, c: int, size: tuple[int, int], assert_close: Close
) -> None:
    for v in (1, 3):
        check_mixed_sum(wide(mixed_sum_args(v=v, k=2, c=c, size=size, dtype=dtype)), assert_close)


@pytest.mark.parametrize("c", [1, 4, 260, 1028])
def test_mixed_sum_channels(c: int, assert_close: Close) -> None:
    """Up to more packs of channels than a block has threads."""
    check_mixed_sum(mixed_sum_args(v=1, k=1, c=c, size=(3, 2), dtype=torch.float32), assert_close)


def test_mixed_sum_of_many_chunks(assert_close: Close) -> None:
    """Several blocks' statistics, the last of a few pixels only; more strips than the reduction has rows."""
    check_mixed_sum(mixed_sum_args(v=2, k=1, n=3, c=64, size=(11, 13), dtype=torch.float32), assert_close)
    check_mixed_sum(
        mixed_sum_args(v=1, k=1, n=40, c=128, size=(9, 16), dtype=torch.float32, dropout=False), assert_close
    )


def test_mixed_sum_of_memory_that_is_not_aligned(assert_close: Close) -> None:
    """Dense tensors off an address that packs can be read from."""

    def shifted(x: Tensor) -> Tensor:
        dense = x.movedim(-3, -1)
        place = torch.empty(dense.numel() + 1)[1:].view(dense.shape)
        return place.copy_(dense).movedim(-1, -3)

    xs, raw_1x1, raw_3x3, alpha, skip_scale = mixed_sum_args(c=8, size=(4, 4), dtype=torch.float32)
    args = [[shifted(x) for x in xs], raw_1x1, [shifted(x) for x in raw_3x3], alpha, skip_scale]
    check_mixed_sum(args, assert_close)


def test_mixed_sum_refuses_what_the_kernels_do_not_take() -> None:
    xs, raw_1x1, raw_3x3, alpha, skip_scale = mixed_sum_args(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="raw_1x1 must have the others' dtype"):
        cuda.mixed_sum(xs, [raw.half() for raw in raw_1x1], raw_3x3, alpha, skip_scale, 1e-5)
    with pytest.raises(RuntimeError, match="alpha must be float32 or have the others' dtype"):
        cuda.mixed_sum(xs, raw_1x1, raw_3x3, alpha.double(), skip_scale, 1e-5)
    with pytest.raises(RuntimeError, match=r"alpha must have shape \[2, 3, 5\]"):
        cuda.mixed_sum(xs, raw_1x1, raw_3x3, alpha[:, :2], skip_scale, 1e-5)
    with pytest.raises(RuntimeError, match="xs must hold 1 to 16 tensors; got 17"):
        many = xs[:1] * 17
        cuda.mixed_sum(many, many, many, normal(2, 17, 5, dtype=torch.float32), [], 1e-5)


def check_masked_cell(args: list[Tensor], assert_close: Close, op: Any = cuda.masked_cell) -> None:
    assert_close(op(*args, 1e-5), reference.masked_cell(*double(args)))


@pytest.mark.usefixtures("schedule")
def test_masked_cell_schedules(assert_close: Close) -> None:
    for dtype in (torch.float32, torch.float16):
        check_masked_cell(masked_cell_args(v=1, n=2, c=17, size=(9, 7), dtype=dtype), assert_close)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("c", "size"), [(8, (6, 5)), (20, (1, 7)), (40, (5, 5)), (16, (32, 32))])
def test_masked_cell_in_half_precision(
    dtype: torch.dtype, c: int, size: tuple[int, int], assert_close: Close
) -> None:
    x, *others = masked_cell_args(v=1 if size == (32, 32) else 3, n=2, c=c, size=size, dtype=dtype)
    check_masked_cell([x, *wide(others)], assert_close)


@pytest.mark.parametrize("c", [3, 24])
def test_masked_cell_rounded_to_tf32(c: int, assert_close: Close) -> None:
    args = masked_cell_args(v=2, c=c, dtype=torch.float32)
    expected = reference.masked_cell(*double(args))
    actual = cuda.masked_cell_tf32(*args, 1e-5)
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert 1e-5 < error < 5e-3, "ten bits of mantissa"


def test_masked_cell_leaves_one_out_in_half_precision(assert_close: Close) -> None:
    args = masked_cell_args(25, n=1, c=8, size=(4, 4), dtype=torch.bfloat16)
    args[5] = leave_one_out_tables(6)[:25].bfloat16()
    check_masked_cell(args, assert_close)


@pytest.mark.parametrize("images", [511, 512, 550])
def test_masked_cell_groups_of_images(images: int, assert_close: Close) -> None:
    """Two or four images a block, the last block with fewer."""
    args = masked_cell_args(v=2, n=images, c=2, size=(2, 3), nodes=3, dtype=torch.float32)
    check_masked_cell(args, assert_close)


def test_masked_cell_refuses_what_does_not_fit() -> None:
    fits, too_large = (masked_cell_args(v=1, n=1, c=c, size=(32, 32), dtype=torch.float32) for c in (16, 48))
    assert cuda.masked_cell_fits(fits[0], fits[5])
    assert not cuda.masked_cell_fits(too_large[0], too_large[5])
    with pytest.raises(RuntimeError, match="do not fit in a block's shared memory"):
        cuda.masked_cell(*too_large, 1e-5)


def test_masked_cell_is_launched_as_the_cost_model_counts() -> None:
    """As many kernels, and refused where the model says so."""
    library = ctypes.CDLL(os.environ["VPDARTS_EMULATED_LIBRARY"])
    args = masked_cell_args(v=2, n=2, c=3, size=(4, 3), dtype=torch.float32)
    before = library.emulated_launches()
    out = cuda.masked_cell(*args, 1e-5)
    works = cuda_masked_cell([*args, 1e-5], out, Tensor.tolist)
    assert library.emulated_launches() - before == sum(work.launches for work in works) == 3
    answers = set()
    for nodes, edges in ((2, 1), (4, 6), (6, 15)):
        for c, size in product((1, 16, 17, 32, 48, 64, 100), (1, 8, 16, 31, 32, 33, 64)):
            for dtype in (torch.float32, torch.float16):
                x, alpha = torch.empty(1, 1, c, size, size, dtype=dtype), torch.empty(2, edges, 5)
                fits = cuda.masked_cell_fits(x, alpha)
                assert cuda_masked_cell_fits(x, alpha, GPUS["h100"].shared_bytes) == fits, (nodes, c, size)
                answers.add(fits)
    assert answers == {True, False}
