"""`mixed_op`: the op contract, held by every backend; its derivatives are in test_mixed_op_derivatives.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from mixed_op_cases import (
    CHANNELS,
    SIZES,
    check,
    darts,
    has_a_variance,
    mixed_op_args,
    others,
    output_only,
)
from op_contract import (
    ALL,
    BOTH,
    LAYOUTS,
    Close,
    check_against_reference,
    every_layout,
    gradients,
    half_of,
    normal,
    served,
    true_derivatives,
    with_tensors,
)
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero
from vpdarts_fast.errors import UserError


@served("mixed_op", BOTH)
@pytest.mark.parametrize("branches", [darts, others])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c", CHANNELS)
def test_mixed_op_values(
    backend: str,
    dtype: torch.dtype,
    branches: Callable[..., list[Branch]],
    stride: int,
    c: int,
    assert_close: Close,
) -> None:
    for n, size in half_of(CHANNELS.index(c) + stride + (branches is others), (1, 4), SIZES):
        if has_a_variance(n, size, stride):
            args = mixed_op_args(1, n, c, size, stride, dtype, branches=branches)
            check_against_reference("mixed_op", args, backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("branches", [darts, others])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_mixed_op_of_variants(
    backend: str,
    dtype: torch.dtype,
    branches: Callable[..., list[Branch]],
    stride: int,
    shared: bool,
    fixed: bool,
    assert_close: Close,
) -> None:
    for (c,) in half_of(stride + (branches is others) + shared + fixed, (3, 16)):
        args = mixed_op_args(3, 4, c, (5, 7), stride, dtype, shared, branches, fixed)
        check_against_reference("mixed_op", args, backend, assert_close)
        check(args[:4], backend, assert_close)


@served("mixed_op", BOTH)
def test_mixed_op_of_a_shared_x_and_given_terms_of_variants(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    args = mixed_op_args(3, dtype=dtype, branches=others)
    args[0] = args[0][:1]
    check_against_reference("mixed_op", args, backend, assert_close)
    check(args, backend, assert_close)


@served("mixed_op", ALL)
@pytest.mark.parametrize("branches", [darts, others])
def test_mixed_op_dtypes(
    backend: str, dtype: torch.dtype, branches: Callable[..., list[Branch]], assert_close: Close
) -> None:
    args = mixed_op_args(c=8, size=(8, 8), dtype=dtype, branches=branches)
    check_against_reference("mixed_op", args, backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("of_each", [False, True], ids=["of all variants", "of each variant"])
def test_mixed_op_with_fixed_statistics(
    backend: str, dtype: torch.dtype, of_each: bool, stride: int, assert_close: Close
) -> None:
    for branches, n in product((darts, others), (1, 4)):
        args = mixed_op_args(2, n, 4, (6, 5), stride, dtype, branches=branches, fixed=True, of_each=of_each)
        check_against_reference("mixed_op", args, backend, assert_close)
        *differentiable, statistics = args

        def output(*some: Any, fixed: Tensor = statistics) -> Any:
            return ops.mixed_op(*some, fixed, backend=backend)

        exact = statistics.double()

        def true(some: list[Any], exact: Tensor = exact) -> list[Tensor]:
            return gradients(lambda *values: reference.mixed_op(*values, exact), some, output_only)

        expected = true_derivatives(true, differentiable)
        actual = gradients(output, differentiable, output_only)
        for gradient, wanted in zip(actual, expected, strict=True):
            assert_close(gradient, wanted)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("branches", [darts, others])
def test_mixed_op_with_statistics_of_each_variant_is_one_call_for_each(
    backend: str,
    dtype: torch.dtype,
    branches: Callable[..., list[Branch]],
    shared: bool,
    assert_close: Close,
) -> None:
    for c, stride in ((3, 1), (16, 2)):
        args = mixed_op_args(3, 4, c, (5, 7), stride, dtype, shared, branches, fixed=True, of_each=True)
        check_against_reference("mixed_op", args, backend, assert_close)
        outputs = ops.mixed_op(*args, backend=backend)
        x, alpha, some, _, statistics = args
        for v in range(3):
            own = [
                replace(branch, raw=branch.raw[v if len(branch.raw) > 1 else 0][None])
                if isinstance(branch, Given)
                else branch
                for branch in some
            ]
            one = [x[0 if shared else v][None], alpha[v][None], own, stride, statistics[v]]
            for output, expected in zip(outputs, ops.mixed_op(*one, backend=backend), strict=True):
                assert_close(output[v], expected[0])


@served("mixed_op", BOTH)
@every_layout
def test_mixed_op_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for c, stride in half_of([*LAYOUTS.values()].index(layout), (3, 16), (1, 2)):
        args = mixed_op_args(2, c=c, stride=stride, dtype=dtype, branches=others)
        args = with_tensors(args, lambda tensor: layout(tensor) if tensor.dim() > 2 else tensor)
        check_against_reference("mixed_op", args, backend, assert_close)
        check(args, backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("c", [1, 4, 16])
def test_mixed_op_of_partial_channels(
    backend: str, dtype: torch.dtype, memory_format: torch.memory_format, c: int, assert_close: Close
) -> None:
    """A slice of the channels, as partially connected supernets take it."""
    args = mixed_op_args(c=c, dtype=dtype)
    whole = normal(3, 4 * c, 5, 7, dtype=dtype).contiguous(memory_format=memory_format)
    args[0] = whole[:, :c].unsqueeze(0)
    check_against_reference("mixed_op", args, backend, assert_close)
    check(args, backend, assert_close)


@served("mixed_op", BOTH)
def test_mixed_op_of_affine_norms(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = mixed_op_args(c=4, dtype=dtype, affine=True)
    check_against_reference("mixed_op", args, backend, assert_close)
    check(args, backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_of_many_images(backend: str, dtype: torch.dtype, stride: int, assert_close: Close) -> None:
    args = mixed_op_args(n=33, c=8, size=(8, 8), stride=stride, dtype=dtype)
    check_against_reference("mixed_op", args, backend, assert_close)
    check(args, backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize(
    "branches", [[Zero()], [Skip()], [Zero(), Pool("max"), Pool("avg"), Skip()]], ids=str
)
def test_mixed_op_without_batch_norms(
    backend: str, dtype: torch.dtype, branches: list[Branch], assert_close: Close
) -> None:
    for n in (0, 1):
        args = mixed_op_args(2, n, 3, (3, 2), dtype=dtype, branches=lambda *_: branches)
        check_against_reference("mixed_op", args, backend, assert_close)
        x, alpha = (tensor.requires_grad_() for tensor in args[:2])
        out, mean, variance = ops.mixed_op(*args, backend=backend)
        assert mean.shape == variance.shape == (2, 0, 3)
        if branches == [Zero()]:  # nothing depends on anything
            continue
        out.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad.shape == x.shape and alpha.grad.shape == alpha.shape


@served("mixed_op", BOTH)
def test_mixed_op_of_an_empty_batch_with_fixed_statistics(backend: str, dtype: torch.dtype) -> None:
    args = mixed_op_args(2, 0, 3, (3, 2), 2, dtype, fixed=True)
    out, mean, variance = ops.mixed_op(*args, backend=backend)
    assert out.shape == (2, 0, 3, 2, 1)
    assert torch.equal(mean, args[4][:, 0].expand(2, -1, -1))
    assert torch.equal(variance, args[4][:, 1].expand(2, -1, -1))


@served("mixed_op", BOTH)
def test_mixed_op_normalises_with_its_own_statistics(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    """Also where the mean is far larger than the deviation."""
    raw = normal(1, 4, 3, 8, 8) + 1000
    args = [normal(1, 4, 3, 8, 8), normal(1, 1), [Given(raw, Norm())]]
    _, mean, variance = ops.mixed_op(*with_tensors(args, lambda t: t.to(dtype)), backend=backend)
    exact, wanted = torch.var_mean(raw.to(dtype).double(), dim=(1, 3, 4), correction=0)
    assert_close(mean[:, 0], wanted)
    torch.testing.assert_close(variance[:, 0].double(), exact, rtol=1e-3, atol=0)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_is_the_modules(backend: str, dtype: torch.dtype, stride: int, assert_close: Close) -> None:
    """As modules of a DARTS code base would compute it."""
    c, torch_norm = 4, nn.BatchNorm2d
    sep = nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        torch_norm(c, affine=False),
        nn.ReLU(),
        nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        torch_norm(c, affine=False),
    ).to(dtype)
    dil = nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c, c, 5, stride, 4, dilation=2, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        torch_norm(c, affine=True),
    ).to(dtype)
    pool = nn.Sequential(nn.MaxPool2d(3, stride, 1), torch_norm(c, affine=False)).to(dtype)
    x, alpha = normal(5, c, 7, 6, dtype=dtype), normal(1, 3, dtype=dtype)
    expected = sum(a * op(x) for a, op in zip(alpha[0], (pool, sep, dil), strict=True))

    def of(module: Any) -> Norm:
        return Norm(module.eps, module.weight, module.bias)

    stages = [Stage(sep[i].weight, sep[i + 1].weight, 1, of(sep[i + 2])) for i in (1, 5)]
    last = Stage(dil[1].weight, dil[2].weight, 2, of(dil[3]))
    branches = [Pool("max", of(pool[1])), SepConv(tuple(stages)), SepConv((last,))]
    out, mean, variance = ops.mixed_op(x[None], alpha, branches, stride, backend=backend)
    assert_close(out[0], expected)
    count = out.numel() // c
    for m, module in enumerate((pool[1], sep[3], sep[7], dil[3])):
        assert_close(mean[0, m] * module.momentum, module.running_mean)
        unbiased = variance[0, m] * count / (count - 1)
        assert_close(1 - module.momentum + unbiased * module.momentum, module.running_var)


def test_mixed_op_refuses() -> None:
    x, alpha, branches, *_ = mixed_op_args(2)
    sep = branches[4]
    first = sep.stages[0]
    flawed = {
        r"depthwise must be \[3, 1, k, k\], k = 3, 5 or 7; got \[3, 1, 4, 4\]": replace(
            first, depthwise=normal(3, 1, 4, 4)
        ),
        r"depthwise must be .*; got \[3, 1, 3, 5\]": replace(first, depthwise=normal(3, 1, 3, 5)),
        r"pointwise must be \[3, 3, 1, 1\]; got \[3, 3\]": replace(first, pointwise=normal(3, 3)),
        "dilation must be 1 or 2; got 3": replace(first, dilation=3),
        r"gamma must be \[3\]; got \[4\]": replace(first, norm=Norm(gamma=normal(4))),
        r"beta must be \[3\]; got \[1, 3\]": replace(first, norm=Norm(beta=normal(1, 3))),
    }
    of_branches: dict[str, Any] = {
        **{rf"branches\[0\].*{message}": SepConv((bad,)) for message, bad in flawed.items()},
        "stages must be one or two; got 0": SepConv(()),
        "stages must be one or two; got 3": SepConv((first,) * 3),
        "kind must be avg or max; got 'min'": Pool("min"),  # type: ignore[arg-type]
        "must be a branch; got a value of type NoneType": None,
        r"raw must be \[1 or 2, 3, 3, 5, 7\]; got \[3, 3, 3, 5, 7\]": Given(normal(3, 3, 3, 5, 7)),
        r"raw must be .*; got \[3, 3, 5, 7\]": Given(normal(3, 3, 5, 7)),
    }
    cases: list[tuple[list[Any], str]] = [
        ([x[0], alpha, branches], r"x must be \[V, N, C, H, W\].*; got \[3, 3, 5, 7\]"),
        ([x[..., :0], alpha, branches], "x must be"),
        ([normal(3, 3, 3, 5, 7), alpha, branches], "x must hold 1 or V = 2 variants; got 3"),
        ([x, alpha[:, :7], branches], r"alpha must be \[V, O\] with O = 8 branches.*; got \[2, 7\]"),
        ([x, alpha[0], branches], "alpha must be"),
        ([x[:0], alpha[:0], branches], "alpha must be"),
        ([x, alpha, branches, 3], "stride must be 1 or 2; got 3"),
        ([x, alpha, branches, 2], r"branches\[3\] must have stride 1 as a Skip; got 2"),
        ([x, alpha, branches, 1, normal(8, 3, 2)], r"statistics must be \[8, 2, 3\]; got \[8, 3, 2\]"),
        (
            [x, alpha, branches, 1, normal(1, 8, 2, 3)],
            r"statistics must be \[2, 8, 2, 3\]; got \[1, 8, 2, 3\]",
        ),
        ([x[:, :1, :, :1, :1], alpha, branches], "the output must hold two values per channel; got x of"),
        ([x[:, :0], alpha, branches], "the output must hold two values per channel"),
        *(([x, alpha[:, :1], [bad]], message) for message, bad in of_branches.items()),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=f"mixed_op: .*{message}"):
            ops.mixed_op(*args)
