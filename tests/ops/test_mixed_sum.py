"""`mixed_sum`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from op_arguments import mixed_sum_args
from op_contract import (
    ALL,
    BOTH,
    CHANNELS,
    SIZES,
    Close,
    backends_in,
    check_against_reference,
    check_gradients,
    check_second_derivatives,
    double,
    every_layout,
    flat,
    gradients,
    half_of,
    normal,
    served,
    weighted_sum,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError


@served("mixed_sum", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
def test_mixed_sum_values(backend: str, dtype: torch.dtype, c: int, assert_close: Close) -> None:
    for v, n, size in half_of(CHANNELS.index(c), (1, 3), (1, 4), SIZES):
        if n * size[0] * size[1] > 1:
            args = mixed_sum_args(v, 2, n, c, size, dtype, dropout=n > 1)
            check_against_reference("mixed_sum", args, backend, assert_close)


@served("mixed_sum", BOTH)
@pytest.mark.parametrize(("v", "k"), [(25, 1), (25, 3), (1, 5)])
def test_mixed_sum_of_many(backend: str, dtype: torch.dtype, v: int, k: int, assert_close: Close) -> None:
    check_against_reference("mixed_sum", mixed_sum_args(v, k, dtype=dtype), backend, assert_close)


@served("mixed_sum", ALL)
def test_mixed_sum_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = mixed_sum_args(c=8, size=(8, 8), dtype=dtype)
    check_against_reference("mixed_sum", args, backend, assert_close)


@served("mixed_sum", BOTH)
@every_layout
@pytest.mark.parametrize(("c", "size"), [(3, (5, 7)), (16, (8, 8))], ids=["odd", "even"])
def test_mixed_sum_layouts(
    backend: str,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    c: int,
    size: tuple[int, int],
    assert_close: Close,
) -> None:
    xs, raw_1x1, raw_3x3, alpha, skip_scale = mixed_sum_args(c=c, size=size, dtype=dtype)
    for which in range(4):  # one kind of tensor at a time, so that layouts also differ within a call
        kinds = [xs, raw_1x1, raw_3x3, skip_scale]
        kinds[which] = [layout(tensor) for tensor in kinds[which]]
        args = [*kinds[:3], alpha.transpose(0, 1).contiguous().transpose(0, 1), kinds[3]]
        check_against_reference("mixed_sum", args, backend, assert_close)
        check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@served("mixed_sum", BOTH)
@pytest.mark.parametrize(
    "alpha",
    [torch.zeros(5), torch.full((5,), 0.2), torch.tensor([3.0, -1.0, 0.0, -0.5, 0.25])],
    ids=["zero", "equal", "mixed"],
)
def test_mixed_sum_alphas(backend: str, dtype: torch.dtype, alpha: Tensor, assert_close: Close) -> None:
    args = mixed_sum_args(dtype=dtype)
    args[3] = alpha.to(dtype).expand(2, 3, 5)
    check_against_reference("mixed_sum", args, backend, assert_close)
    check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@served("mixed_sum", BOTH)
def test_mixed_sum_normalises_with_its_own_statistics(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    v, k, c = 2, 2, 3
    args = mixed_sum_args(v=v, k=k, c=c, dtype=dtype, dropout=False)
    _, mean, variance = ops.mixed_sum(*args, backend=backend)
    for variant, e, (o, raw) in product(range(v), range(k), enumerate(args[1:3])):
        values = raw[e][variant].double().transpose(0, 1).flatten(1)
        assert_close(mean[variant, e, o], values.mean(1))
        assert_close(variance[variant, e, o], values.var(1, correction=0))


@served("mixed_sum", BOTH)
def test_mixed_sum_of_a_large_mean_and_a_small_variance(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    xs, raw_1x1, raw_3x3, alpha, _ = mixed_sum_args(k=1, n=8, size=(16, 16), dtype=dtype)
    large = raw_1x1[0] + 1000
    _, mean, variance = ops.mixed_sum(xs, [large], raw_3x3, alpha, backend=backend)
    wanted_variance, wanted_mean = torch.var_mean(large.double(), dim=(1, 3, 4), correction=0)
    assert_close(mean[:, 0, 0], wanted_mean)
    torch.testing.assert_close(variance[:, 0, 0].double(), wanted_variance, rtol=1e-3, atol=0)


@served("mixed_sum", BOTH)
def test_mixed_sum_eps(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = [*mixed_sum_args(dtype=dtype), 0.3]
    node, _, _ = ops.mixed_sum(*args, backend=backend)
    assert_close(node, reference.mixed_sum(*double(args))[0])
    assert not torch.allclose(node, reference.mixed_sum(*args[:-1])[0], rtol=1e-3)


GRADIENT_SIZES = [(1, 6), (2, 2), (5, 7), (16, 16)]


@served("mixed_sum", BOTH)
@pytest.mark.parametrize("size", GRADIENT_SIZES)
def test_mixed_sum_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], assert_close: Close
) -> None:
    cases = ((1, 3, 4, 3), (3, 2, 2, 8), (1, 1, 4, 1))
    for (v, k, n, c), dropout in half_of(GRADIENT_SIZES.index(size), cases, (False, True)):
        args = mixed_sum_args(v, k, n, c, size, dtype, dropout)
        check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@served("mixed_sum", BOTH)
@pytest.mark.parametrize("dropout", [False, True])
def test_mixed_sum_second_derivatives(
    backend: str, dtype: torch.dtype, dropout: bool, assert_close: Close
) -> None:
    args = mixed_sum_args(dtype=dtype, dropout=dropout)
    check_second_derivatives("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@backends_in("mixed_sum", torch.float64)
@pytest.mark.parametrize("dropout", [False, True])
def test_mixed_sum_gradcheck(backend: str, dropout: bool) -> None:
    args = mixed_sum_args(v=2, k=2, n=2, c=2, size=(2, 3), dropout=dropout)
    leaves = [tensor.requires_grad_() for tensor in flat(args)]

    def node(*tensors: Tensor) -> Tensor:
        xs, raw_1x1, raw_3x3 = tensors[:2], tensors[2:4], tensors[4:6]
        return ops.mixed_sum(xs, raw_1x1, raw_3x3, tensors[6], tensors[7:], backend=backend)[0]

    assert torch.autograd.gradcheck(node, leaves)


ALPHA = 9  # among all tensors, behind three xs and six raw outputs


@served("mixed_sum", BOTH)
@pytest.mark.parametrize(
    "wanted",
    [[ALPHA], [i for i in range(13) if i != ALPHA], [0], [2, 4], [5], [8, ALPHA], [11]],
    ids=["alpha", "all but alpha", "a source", "some", "a 1x1", "a 3x3 and alpha", "a skip scale"],
)
def test_mixed_sum_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: list[int], assert_close: Close
) -> None:
    args = mixed_sum_args(dtype=dtype)
    expected = gradients(reference.mixed_sum, double(args), lambda out: [out[0]])
    leaves = flat(args)
    for i in wanted:
        leaves[i].requires_grad_()
    node, _, _ = ops.mixed_sum(*args, backend=backend)
    weighted_sum([node]).backward()  # type: ignore[no-untyped-call]
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in wanted)
        if leaf.grad is not None:
            assert_close(leaf.grad, expected[i])


@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 1), (1, 0, 3, 4, 4), (0, 2, 3, 4, 4)])
def test_mixed_sum_refuses_what_has_no_statistics(shape: tuple[int, ...]) -> None:
    """As `torch.nn.BatchNorm2d`: one value per channel has no variance."""
    tensors = [normal(*shape)]
    with pytest.raises(UserError, match="mixed_sum: xs"):
        ops.mixed_sum(tensors, tensors, tensors, normal(shape[0], 1, 5))


def test_mixed_sum_refuses() -> None:
    xs, raw_1x1, raw_3x3, alpha, skip_scale = mixed_sum_args()
    other = normal(2, 2, 3, 5, 6)
    cases: list[tuple[list[Any], str]] = [
        ([[], [], [], alpha], "at least one; got 0, 0, 0, 0"),
        ([xs, raw_1x1[:2], raw_3x3, alpha], "as many raw_1x1, .*; got 3, 2, 3, 0"),
        ([xs, raw_1x1, raw_3x3[:2], alpha], "as many raw_1x1, .*; got 3, 3, 2, 0"),
        ([xs, raw_1x1, raw_3x3, alpha, skip_scale[:1]], "skip_scale .*; got 3, 3, 3, 1"),
        ([[x[0] for x in xs], raw_1x1, raw_3x3, alpha], r"xs must be \[V, N, C, H, W\]; got \[2, 3, 5, 7\]"),
        ([[xs[0], other, xs[2]], raw_1x1, raw_3x3, alpha], r"xs\[1\] must be \[2, 2, 3, 5, 7\]; got"),
        ([xs, [*raw_1x1[:2], other], raw_3x3, alpha], r"raw_1x1\[2\] must be"),
        ([xs, raw_1x1, [other, *raw_3x3[1:]], alpha], r"raw_3x3\[0\] must be"),
        ([xs, raw_1x1, raw_3x3, alpha, [other, *skip_scale[1:]]], r"skip_scale\[0\] must be"),
        ([xs, raw_1x1, raw_3x3, alpha[:1]], r"alpha must be \[V, k, 5\] = \[2, 3, 5\]; got \[1, 3, 5\]"),
        ([xs, raw_1x1, raw_3x3, alpha[:, :2]], "alpha must be"),
        ([xs, raw_1x1, raw_3x3, alpha[:, :, :4]], "alpha must be"),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=f"mixed_sum: .*{message}"):
            ops.mixed_sum(*args)
