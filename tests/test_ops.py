"""The contract of every op, held by every backend against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vpdarts_fast import ops, reference
from vpdarts_fast.backends import BACKENDS
from vpdarts_fast.errors import UserError

Close = Callable[[Tensor, Tensor], None]

CHANNELS = (1, 3, 8, 16)
SIZES = ((1, 1), (1, 6), (2, 2), (5, 7), (16, 16))
EDGES_OF_NODES = {2: 1, 3: 3, 4: 6, 5: 10}

BOTH = (torch.float32, torch.float64)
ALL = (*BOTH, torch.bfloat16, torch.float16)


def served(op: str, dtypes: Sequence[torch.dtype]) -> pytest.MarkDecorator:
    """Every (backend, dtype) that the registry serves for this op."""
    pairs = [(b.name, d) for b in BACKENDS if op in b.implementations for d in dtypes if d in b.dtypes]
    ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=ids)


def backends_in(op: str, dtype: torch.dtype) -> pytest.MarkDecorator:
    """Every backend that serves this op in this dtype."""
    names = [b.name for b in BACKENDS if op in b.implementations and dtype in b.dtypes]
    return pytest.mark.parametrize("backend", names)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels innermost in memory; x [..., C, H, W]."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def sliced(x: Tensor) -> Tensor:
    """The same values, every second of a wider tensor and off its start."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def transposed(x: Tensor) -> Tensor:
    """The same values, columns outermost in memory."""
    return x.mT.contiguous().mT


LAYOUTS = {"channels_last": channels_last, "sliced": sliced, "transposed": transposed}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def double(value: Any) -> Any:
    """Tensors, also in sequences, in float64."""
    if isinstance(value, Tensor):
        return value.double()
    return [double(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(value: Any) -> list[Tensor]:
    """All tensors in nested sequences."""
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in flat(item)]


def check_against_reference(op: str, args: Sequence[Any], backend: str, close: Close) -> None:
    """Values against the reference in float64; arguments unchanged; the same bits again."""
    before = [tensor.clone() for tensor in flat(args)]
    actual = flat(getattr(ops, op)(*args, backend=backend))
    expected = flat(getattr(reference, op)(*double(args)))
    dtype = flat(args)[0].dtype
    for result, wanted in zip(actual, expected, strict=True):
        assert result.dtype == dtype
        close(result, wanted)
    for tensor, saved in zip(flat(args), before, strict=True):
        assert torch.equal(tensor, saved), "an argument was changed"
    again = flat(getattr(ops, op)(*args, backend=backend))
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True)), "not repeatable"


def weighted_sum(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every element in its own way."""
    sums = [
        (out * normal(*out.shape, dtype=out.dtype, seed=i)).sum() for i, out in enumerate(outputs, start=99)
    ]
    return torch.stack(sums).sum()


def gradients(
    op: Callable[..., Any], args: Sequence[Any], used: Callable[[Any], list[Tensor]]
) -> list[Tensor]:
    """d(sum of fixed random weights * outputs) / d(every tensor argument)."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in flat(args)]
    iterator = iter(leaves)

    def put(value: Any) -> Any:
        return next(iterator) if isinstance(value, Tensor) else [put(item) for item in value]

    outputs = used(op(*[put(arg) for arg in args]))
    return list(torch.autograd.grad(weighted_sum(outputs), leaves))


def check_gradients(
    op: str, args: Sequence[Any], backend: str, close: Close, used: Callable[[Any], list[Tensor]] = flat
) -> None:
    """Gradients of every tensor argument against the reference's in float64."""
    actual = gradients(lambda *a: getattr(ops, op)(*a, backend=backend), args, used)
    expected = gradients(getattr(reference, op), double(args), used)
    for gradient, wanted in zip(actual, expected, strict=True):
        close(gradient, wanted)


# relu_conv ------------------------------------------------------------------------------------------------


def relu_conv_args(
    k: int = 3, n: int = 2, c: int = 3, size: tuple[int, int] = (5, 7), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(n, c, *size, dtype=dtype),
        normal(k, c, c, 1, 1, dtype=dtype, seed=1),
        normal(k, c, c, 3, 3, dtype=dtype, seed=2),
    )


@served("relu_conv", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
def test_relu_conv_values(backend: str, dtype: torch.dtype, c: int, assert_close: Close) -> None:
    for k, n, size in product((1, 3), (0, 1, 4), SIZES):
        check_against_reference("relu_conv", relu_conv_args(k, n, c, size, dtype), backend, assert_close)


@served("relu_conv", ALL)
def test_relu_conv_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_against_reference("relu_conv", relu_conv_args(c=8, dtype=dtype), backend, assert_close)


@backends_in("relu_conv", torch.float64)
@every_layout
def test_relu_conv_layouts(backend: str, layout: Callable[[Tensor], Tensor], assert_close: Close) -> None:
    x, weight_1x1, weight_3x3 = relu_conv_args()
    args = layout(x), weight_1x1.transpose(1, 2), transposed(weight_3x3)
    check_against_reference("relu_conv", args, backend, assert_close)
    check_gradients("relu_conv", args, backend, assert_close)


@served("relu_conv", BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_relu_conv_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], assert_close: Close
) -> None:
    for k, n, c in ((1, 1, 1), (3, 4, 3), (2, 2, 8)):
        check_gradients("relu_conv", relu_conv_args(k, n, c, size, dtype), backend, assert_close)


@backends_in("relu_conv", torch.float64)
def test_relu_conv_gradcheck(backend: str) -> None:
    args = [arg.requires_grad_() for arg in relu_conv_args(k=2, n=2, c=2, size=(3, 4))]
    assert torch.autograd.gradcheck(lambda *a: tuple(flat(ops.relu_conv(*a, backend=backend))), args)


@backends_in("relu_conv", torch.float64)
@pytest.mark.parametrize("wanted", range(3))
def test_relu_conv_gives_only_the_gradients_asked_for(backend: str, wanted: int, assert_close: Close) -> None:
    args = list(relu_conv_args())
    expected = gradients(reference.relu_conv, args, flat)[wanted]
    args[wanted].requires_grad_()
    outputs = flat(ops.relu_conv(*args, backend=backend))
    weighted_sum(outputs).backward()  # type: ignore[no-untyped-call]
    for i, arg in enumerate(args):
        assert (arg.grad is not None) == (i == wanted)
    gradient = args[wanted].grad
    assert gradient is not None
    assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 5, 7), r"x must be \[N, C, H, W\]; got \[3, 5, 7\]"),
        (0, (2, 4, 5, 7), r"weight_1x1 must be .* = \[3, 4, 4, 1, 1\]"),
        (1, (3, 3, 3, 1), "weight_1x1 must be"),
        (1, (3, 3, 4, 1, 1), "weight_1x1 must be"),
        (1, (3, 3, 3, 3, 3), "weight_1x1 must be"),
        (1, (), "weight_1x1 must be"),
        (2, (3, 3, 3, 1, 1), "weight_3x3 must be"),
        (2, (2, 3, 3, 3, 3), r"weight_3x3 must be .* = \[3, 3, 3, 3, 3\]; got \[2, 3, 3, 3, 3\]"),
    ],
)
def test_relu_conv_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args = list(relu_conv_args())
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"relu_conv: {message}"):
        ops.relu_conv(*args)


# mixed_sum ------------------------------------------------------------------------------------------------


def mixed_sum_args(
    v: int = 2,
    k: int = 3,
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    dropout: bool = True,
) -> list[Any]:
    xs, raw_1x1, raw_3x3, scales = (
        [normal(v, n, c, *size, dtype=dtype, seed=100 * block + e) for e in range(k)] for block in range(4)
    )
    skip_scale = [(scale > -0.8).to(dtype) * 1.25 for scale in scales] if dropout else []
    # means that are not zero
    raw_1x1 = [raw + 1 for raw in raw_1x1]
    return [xs, raw_1x1, raw_3x3, normal(v, k, 5, dtype=dtype, seed=500), skip_scale]


@served("mixed_sum", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
def test_mixed_sum_values(backend: str, dtype: torch.dtype, c: int, assert_close: Close) -> None:
    for v, n, size in product((1, 3), (1, 4), SIZES):
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


@backends_in("mixed_sum", torch.float64)
@every_layout
def test_mixed_sum_layouts(backend: str, layout: Callable[[Tensor], Tensor], assert_close: Close) -> None:
    xs, raw_1x1, raw_3x3, alpha, skip_scale = mixed_sum_args()
    for which in range(4):  # one kind of tensor at a time, so that layouts also differ within a call
        kinds = [xs, raw_1x1, raw_3x3, skip_scale]
        kinds[which] = [layout(tensor) for tensor in kinds[which]]
        args = [*kinds[:3], alpha.transpose(0, 1).contiguous().transpose(0, 1), kinds[3]]
        check_against_reference("mixed_sum", args, backend, assert_close)
        check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@backends_in("mixed_sum", torch.float64)
@pytest.mark.parametrize(
    "alpha",
    [torch.zeros(5), torch.full((5,), 0.2), torch.tensor([3.0, -1.0, 0.0, -0.5, 0.25])],
    ids=["zero", "equal", "mixed"],
)
def test_mixed_sum_alphas(backend: str, alpha: Tensor, assert_close: Close) -> None:
    args = mixed_sum_args()
    args[3] = alpha.double().expand(2, 3, 5)
    check_against_reference("mixed_sum", args, backend, assert_close)
    check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@backends_in("mixed_sum", torch.float64)
def test_mixed_sum_normalises_with_its_own_statistics(backend: str, assert_close: Close) -> None:
    v, k, c = 2, 2, 3
    args = mixed_sum_args(v=v, k=k, c=c, dropout=False)
    _, mean, variance = ops.mixed_sum(*args, backend=backend)
    for variant, e, (o, raw) in product(range(v), range(k), enumerate(args[1:3])):
        values = raw[e][variant].transpose(0, 1).flatten(1)
        assert_close(mean[variant, e, o], values.mean(1))
        assert_close(variance[variant, e, o], values.var(1, correction=0))


@backends_in("mixed_sum", torch.float64)
def test_mixed_sum_eps(backend: str, assert_close: Close) -> None:
    args = [*mixed_sum_args(), 0.3]
    node, _, _ = ops.mixed_sum(*args, backend=backend)
    assert_close(node, reference.mixed_sum(*args)[0])
    assert not torch.allclose(node, reference.mixed_sum(*args[:-1])[0])


@served("mixed_sum", BOTH)
@pytest.mark.parametrize("size", [(1, 6), (2, 2), (5, 7), (16, 16)])
def test_mixed_sum_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], assert_close: Close
) -> None:
    for v, k, n, c in ((1, 3, 4, 3), (3, 2, 2, 8), (1, 1, 4, 1)):
        for dropout in (False, True):
            args = mixed_sum_args(v, k, n, c, size, dtype, dropout)
            check_gradients("mixed_sum", args, backend, assert_close, lambda out: [out[0]])


@backends_in("mixed_sum", torch.float64)
@pytest.mark.parametrize("dropout", [False, True])
def test_mixed_sum_gradcheck(backend: str, dropout: bool) -> None:
    args = mixed_sum_args(v=2, k=2, n=2, c=2, size=(2, 3), dropout=dropout)
    leaves = [tensor.requires_grad_() for tensor in flat(args)]

    def node(*tensors: Tensor) -> Tensor:
        xs, raw_1x1, raw_3x3 = tensors[:2], tensors[2:4], tensors[4:6]
        return ops.mixed_sum(xs, raw_1x1, raw_3x3, tensors[6], tensors[7:], backend=backend)[0]

    assert torch.autograd.gradcheck(node, leaves)


@backends_in("mixed_sum", torch.float64)
@pytest.mark.parametrize("which", ["alpha", "all but alpha"])
def test_mixed_sum_gives_only_the_gradients_asked_for(backend: str, which: str, assert_close: Close) -> None:
    args = mixed_sum_args()
    expected = gradients(reference.mixed_sum, args, lambda out: [out[0]])
    leaves = flat(args)
    alpha = 9  # behind three xs and six raw outputs
    wanted = [i for i in range(len(leaves)) if (i == alpha) == (which == "alpha")]
    for i in wanted:
        leaves[i].requires_grad_()
    node, _, _ = ops.mixed_sum(*args, backend=backend)
    weighted_sum([node]).backward()  # type: ignore[no-untyped-call]
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert leaf.grad is not None
            assert_close(leaf.grad, expected[i])
        else:
            assert leaf.grad is None


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


# masked_cell ----------------------------------------------------------------------------------------------


def masked_cell_args(
    v: int = 3,
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    nodes: int = 4,
    shared: bool = True,
) -> list[Tensor]:
    edges = EDGES_OF_NODES[nodes]
    scale = c**-0.5  # keeps the cell's values near 1, so that half precision does not overflow
    return [
        normal(1 if shared else v, n, c, *size, dtype=dtype),
        normal(edges, c, c, 1, 1, dtype=dtype, seed=1) * scale,
        normal(edges, c, c, 3, 3, dtype=dtype, seed=2) * (scale / 3),
        normal(edges, 2, c, dtype=dtype, seed=3),
        normal(edges, 2, c, dtype=dtype, seed=4).abs() + 0.5,
        normal(v, edges, 5, dtype=dtype, seed=5) / 2,
    ]


def leave_one_out_tables(edges: int) -> Tensor:
    """The base and every removal, [1 + 5 E, E, 5]."""
    base = normal(edges, 5, seed=6)
    tables = base.repeat(1 + 5 * edges, 1, 1)
    for number, (e, o) in enumerate(product(range(edges), range(5)), start=1):
        tables[number, e, o] = 0
    return tables


@served("masked_cell", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_masked_cell_values(
    backend: str, dtype: torch.dtype, c: int, shared: bool, assert_close: Close
) -> None:
    for v, n, size in product((1, 3), (0, 1, 4), SIZES):
        args = masked_cell_args(v, n, c, size, dtype, shared=shared)
        check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", ALL)
def test_masked_cell_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_against_reference("masked_cell", masked_cell_args(c=8, dtype=dtype), backend, assert_close)


@served("masked_cell", BOTH)
@pytest.mark.parametrize("nodes", EDGES_OF_NODES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_masked_cell_leaves_one_out(
    backend: str, dtype: torch.dtype, nodes: int, shared: bool, assert_close: Close
) -> None:
    tables = leave_one_out_tables(EDGES_OF_NODES[nodes])
    args = masked_cell_args(len(tables), n=1, dtype=dtype, nodes=nodes, shared=shared)
    args[5] = tables.to(dtype)
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
@every_layout
def test_masked_cell_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for shared in (True, False):
        x, *weights, mean, variance, alpha = masked_cell_args(dtype=dtype, shared=shared)
        args = [
            layout(x),
            *(weight.transpose(1, 2).contiguous().transpose(1, 2) for weight in weights),
            transposed(mean),
            sliced(variance),
            transposed(alpha),
        ]
        check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
def test_masked_cell_takes_an_expanded_input(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = masked_cell_args(dtype=dtype)
    args[0] = args[0].expand(3, -1, -1, -1, -1)
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
@pytest.mark.parametrize(
    "row",
    [[0.0] * 5, [0.2] * 5, [9.0, 0, 0, 0, 0], [0, -1, -0.5, 0, 2]],
    ids=["zero", "equal", "none", "mixed"],
)
def test_masked_cell_alphas(backend: str, dtype: torch.dtype, row: list[float], assert_close: Close) -> None:
    *others, _ = masked_cell_args(dtype=dtype)
    alpha = torch.tensor(row, dtype=dtype).expand(3, 6, 5)
    check_against_reference("masked_cell", [*others, alpha], backend, assert_close)
    x, w1, w3, mean, variance = others
    out = ops.masked_cell(x, w1, w3, mean, variance, alpha, backend=backend)
    assert bool(out.any()) == any(row[1:])


@served("masked_cell", BOTH)
def test_masked_cell_eps(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    x, w1, w3, mean, variance, alpha = masked_cell_args(dtype=dtype)
    expected = reference.masked_cell(x, w1, w3, mean, variance, alpha, 0.3)
    assert_close(ops.masked_cell(x, w1, w3, mean, variance, alpha, 0.3, backend=backend), expected)
    assert not torch.allclose(expected, reference.masked_cell(x, w1, w3, mean, variance, alpha))


@st.composite
def sharing_patterns(draw: st.DrawFn) -> tuple[int, bool, Tensor]:
    """Nodes, whether the input is shared, and tables [V, E, 5] of a few rows, so that many of them repeat."""
    nodes = draw(st.sampled_from(list(EDGES_OF_NODES)))
    values = st.sampled_from([0.0, 0.2, -0.7, 1.0])
    rows = draw(st.lists(st.lists(values, min_size=5, max_size=5), min_size=1, max_size=4))
    edges = EDGES_OF_NODES[nodes]
    table = st.lists(st.sampled_from(rows), min_size=edges, max_size=edges)
    tables = draw(st.lists(table, min_size=1, max_size=6))
    return nodes, draw(st.booleans()), torch.tensor(tables, dtype=torch.float64)


@served("masked_cell", BOTH)
@settings(max_examples=60, deadline=None)
@given(pattern=sharing_patterns())
def test_masked_cell_shares_what_is_shared(
    backend: str, dtype: torch.dtype, pattern: tuple[int, bool, Tensor], assert_close: Close
) -> None:
    nodes, shared, tables = pattern
    args = masked_cell_args(len(tables), n=1, c=2, size=(3, 4), dtype=dtype, nodes=nodes, shared=shared)
    args[5] = tables.to(dtype)
    check_against_reference("masked_cell", args, backend, assert_close)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 3, 5, 7), r"x must be \[V, N, C, H, W\]; got \[2, 3, 5, 7\]"),
        (0, (2, 2, 3, 5, 7), "x must hold 1 or V = 3 variants; got 2"),
        (0, (1, 2, 4, 5, 7), r"weight_1x1 must be \[6, 4, 4, 1, 1\]"),
        (1, (6, 3, 3, 3, 3), "weight_1x1 must be"),
        (2, (6, 3, 3, 1, 1), r"weight_3x3 must be \[6, 3, 3, 3, 3\]; got \[6, 3, 3, 1, 1\]"),
        (2, (5, 3, 3, 3, 3), "weight_3x3 must be"),
        (3, (6, 3), r"mean must be \[6, 2, 3\]; got \[6, 3\]"),
        (4, (6, 2, 4), r"variance must be \[6, 2, 3\]"),
        (5, (6, 5), r"alpha must be \[V, E, 5\]"),
        (5, (3, 5, 5), r"alpha must be .*; got \[3, 5, 5\]"),
        (5, (3, 6, 4), "alpha must be"),
        (5, (0, 6, 5), "x must hold 1 or V = 0 variants"),
    ],
)
def test_masked_cell_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args: list[Any] = list(masked_cell_args())
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"masked_cell: {message}"):
        ops.masked_cell(*args)
