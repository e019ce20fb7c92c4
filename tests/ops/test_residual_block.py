"""`residual_block`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_arguments import residual_block_args
from op_contract import (
    ALL,
    BOTH,
    SIZES,
    Close,
    check_against_reference,
    every_layout,
    half_of,
    normal,
    served,
    sliced,
    transposed,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import ResidualBlock

CHANNELS = ((1, 2), (3, 5), (8, 16), (16, 32), (24, 8), (32, 64))


@served("residual_block", BOTH)
@pytest.mark.parametrize("channels", CHANNELS)
def test_residual_block_values(
    backend: str, dtype: torch.dtype, channels: tuple[int, int], assert_close: Close
) -> None:
    for n, size in half_of(CHANNELS.index(channels), (0, 1, 5), (*SIZES, (32, 9))):
        args = residual_block_args(n, channels, size, dtype)
        check_against_reference("residual_block", args, backend, assert_close)


@served("residual_block", BOTH)
def test_residual_block_of_many_images(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    for n in (15, 16, 17, 33):
        args = residual_block_args(n, (8, 16), (8, 8), dtype)
        check_against_reference("residual_block", args, backend, assert_close)


@served("residual_block", ALL)
def test_residual_block_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = residual_block_args(channels=(8, 16), dtype=dtype)
    check_against_reference("residual_block", args, backend, assert_close)


@served("residual_block", BOTH)
@every_layout
def test_residual_block_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for channels in ((3, 5), (16, 16)):
        x, *weights, scale, shift = residual_block_args(channels=channels, dtype=dtype)
        args = [
            layout(x),
            *(weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights),
            transposed(scale),
            sliced(shift),
        ]
        check_against_reference("residual_block", args, backend, assert_close)


@served("residual_block", BOTH)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_residual_block_is_the_module(
    backend: str, dtype: torch.dtype, size: tuple[int, int], assert_close: Close
) -> None:
    """With trained batch norms, in eval mode, whatever backend the registry takes."""
    torch.manual_seed(0)
    block = ResidualBlock(4, 8).to(dtype)
    with torch.no_grad():
        for norm in (block.conv_a.norm, block.conv_b.norm):
            norm.weight.normal_()
            norm.bias.normal_()
        for seed in range(3):
            block(normal(4, 4, *size, dtype=dtype, seed=seed))
        block.eval()
        x = normal(3, 4, *size, dtype=dtype, seed=7)
        assert_close(block.with_fixed_statistics(x), block.double()(x.double()))


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 5, 7), r"x must be \[N, C, H, W\], C, H and W at least 1; got \[3, 5, 7\]"),
        (0, (2, 3, 0, 7), "x must be"),
        (0, (2, 4, 5, 7), r"weight_a must be \[5, 4, 3, 3\]; got \[5, 3, 3, 3\]"),
        (1, (5, 3, 9), r"weight_a must be \[C_out, C, 3, 3\]; got \[5, 3, 9\]"),
        (1, (0, 3, 3, 3), "weight_a must be"),
        (1, (4, 3, 3, 3), r"weight_b must be \[4, 4, 3, 3\]"),
        (2, (5, 5, 1, 1), r"weight_b must be \[5, 5, 3, 3\]"),
        (3, (5, 3), r"weight_shortcut must be \[5, 3, 1, 1\]"),
        (4, (5,), r"scale must be \[2, 5\]"),
        (5, (2, 4), r"shift must be \[2, 5\]"),
    ],
)
def test_residual_block_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args: list[Any] = list(residual_block_args())
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"residual_block: {message}"):
        ops.residual_block(*args)
