"""What the Triton backend promises beyond the op contract; run by test_triton.py under the interpreter."""

from __future__ import annotations

import importlib
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from capture import META, Watch
from op_arguments import leave_one_out_tables, masked_cell_args, mixed_cell_args, mixed_sum_args, node_only
from op_contract import (
    Close,
    channels_last,
    check_against_reference,
    check_gradients,
    double,
    flat,
    gradients,
    weighted_sum,
)
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.backends.triton.blocks import ELEMENTS
from vpdarts_fast.backends.triton.kernels import mixed_sum as sum_kernels
from vpdarts_fast.backends.triton.layout import pixel_rows
from vpdarts_fast.backends.triton.masked_cell import float32_precision, plan, planned_cell
from vpdarts_fast.backends.triton.mixed_sum import mixed_sum_with_dropout
from vpdarts_fast.contract import reference


def test_the_interpreter_serves_the_cpu() -> None:
    (backend,) = (b for b in BACKENDS if b.name == "triton")
    assert backend.missing is None and backend.device_types == {"cpu"}


def test_one_of_each(assert_close: Close) -> None:
    """Short: what broken copies of the kernels are held against."""
    args = mixed_sum_args(v=1, k=2, dtype=torch.float32)
    check_against_reference("mixed_sum", args, "triton", assert_close)
    check_gradients("mixed_sum", args, "triton", assert_close, node_only)
    check_gradients("mixed_cell", mixed_cell_args(nodes=3, dtype=torch.float32), "triton", assert_close,
                    node_only)  # fmt: skip
    check_against_reference("masked_cell", masked_cell_args(v=2, dtype=torch.float32, nodes=3), "triton",
                            assert_close)  # fmt: skip


@pytest.mark.parametrize(
    ("n", "c", "size"), [(1, 1, (1, 6)), (2, 100, (2, 2)), (3, 16, (13, 17)), (4, 8, (1, 2))]
)
def test_mixed_sum_of_odd_sizes(n: int, c: int, size: tuple[int, int], assert_close: Close) -> None:
    """Several blocks of pixels and of channels, the last ones not full."""
    assert (n * size[0] * size[1] * 16 > 2 * ELEMENTS) == (c == 16)
    args = mixed_sum_args(2, 2, n, c, size, torch.float32)
    check_against_reference("mixed_sum", args, "triton", assert_close)
    check_gradients("mixed_sum", args, "triton", assert_close, node_only)


@pytest.mark.parametrize(
    ("n", "c", "size"), [(0, 3, (4, 4)), (1, 1, (1, 1)), (1, 3, (1, 6)), (1, 20, (9, 11)), (1, 40, (3, 5))]
)
def test_masked_cell_of_odd_sizes(n: int, c: int, size: tuple[int, int], assert_close: Close) -> None:
    """No image, one pixel; several blocks of pixels and of channels, the last ones not full."""
    args = masked_cell_args(2, n, c, size, torch.float32, nodes=3)
    check_against_reference("masked_cell", args, "triton", assert_close)


def test_masked_cell_of_an_evaluation(assert_close: Close) -> None:
    """25 distinct tables."""
    tables = leave_one_out_tables(6)
    tables = tables[[0, *(v for v in range(1, 31) if v % 5 != 1)]]
    args = masked_cell_args(len(tables), n=1, c=2, size=(2, 3), dtype=torch.float32)
    args[5] = tables.float()
    assert len(tables) == 25
    check_against_reference("masked_cell", args, "triton", assert_close)


def test_a_plan_is_good_for_other_alphas_that_differ_in_the_same_places(assert_close: Close) -> None:
    args = masked_cell_args(v=3, nodes=3, dtype=torch.float32)
    rows = tuple(tuple(tuple(row) for row in table) for table in args[5].tolist())
    made = plan(rows, True, False, torch.device("cpu"))
    args[5] = args[5] * 0.5
    assert_close(planned_cell(made, *args, 1e-5), reference.masked_cell(*double(args)))


@pytest.mark.parametrize("dropout", [0.25, 2**-40, 1 - 2**-32])
def test_dropout_is_drawn_as_the_reference_draws_it(dropout: float, assert_close: Close) -> None:
    """Also where everything or next to nothing is kept; forward and backward."""
    xs, raw_1x1, raw_3x3, alpha, _ = mixed_sum_args(v=2, k=2, dtype=torch.float32)
    seeds = torch.tensor([-(2**63), 2**62 + 12345])
    scales = [reference.skip_scale(int(seed), dropout, xs[0][0]).expand_as(xs[0]) for seed in seeds]
    args = [xs, raw_1x1, raw_3x3, alpha]
    actual = mixed_sum_with_dropout(*args, seeds, dropout, 1e-5)[0]
    assert_close(actual, reference.mixed_sum(*double([*args, scales]))[0])
    found = gradients(lambda *a: mixed_sum_with_dropout(*a, seeds, dropout, 1e-5), args, node_only)
    expected = gradients(lambda *a: reference.mixed_sum(*a, double(scales)), double(args), node_only)
    for gradient, wanted in zip(found, expected, strict=True):
        assert_close(gradient, wanted)


def test_slices_of_a_wider_tensor_are_taken_as_they_are(assert_close: Close) -> None:
    """As `relu_conv` leaves them: no copy."""
    xs, raw_1x1, raw_3x3, alpha, _ = mixed_sum_args(k=2, dtype=torch.float32)
    parts = channels_last(torch.cat([*raw_1x1, *raw_3x3], dim=2)).split(3, dim=2)
    for part in parts:
        rows, step = pixel_rows(part)
        assert rows.data_ptr() == part.data_ptr() and step == 12
    expected = reference.mixed_sum(*double([xs, raw_1x1, raw_3x3, alpha]))
    actual = ops.mixed_sum(xs, parts[:2], parts[2:], alpha, backend="triton")
    for some, wanted in zip(actual, expected, strict=True):
        assert_close(some, wanted)


def test_mixed_cell_of_one_variant_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a step can be captured as a CUDA graph."""
    args = mixed_cell_args(c=4, size=(3, 4), dtype=torch.float32)
    for name in ("tolist", "item", "__int__", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    leaves = [arg.requires_grad_() for arg in args[:4]]
    torch.autograd.grad(ops.mixed_cell(*args, backend="triton")[0].sum(), leaves)


def test_a_cell_that_is_trained_has_the_values_of_one_that_is_not() -> None:
    """Bit for bit: the same kernels, over other slices."""
    args = mixed_cell_args(c=8, dtype=torch.float32)
    untrained = ops.mixed_cell(*args, backend="triton")
    trained = ops.mixed_cell(args[0].requires_grad_(), *args[1:], backend="triton")
    assert trained[0].requires_grad and not (trained[1].requires_grad or trained[2].requires_grad)
    assert all(torch.equal(a, b) for a, b in zip(trained, untrained, strict=True))


@pytest.mark.parametrize(("n", "c", "size"), [(2, 1, (1, 1)), (2, 80, (3, 5)), (3, 16, (13, 17))])
def test_mixed_cell_of_odd_sizes(n: int, c: int, size: tuple[int, int], assert_close: Close) -> None:
    """One pixel; several blocks of channels and of pixels, the last ones not full."""
    args = mixed_cell_args(1, n, c, size, torch.float32, nodes=3)
    check_gradients("mixed_cell", args, "triton", assert_close, node_only)


def test_mixed_cell_is_a_well_behaved_operator() -> None:
    x, *weights, alpha, seeds, dropout = mixed_cell_args(c=3, size=(2, 3), nodes=3, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights, alpha)]
    torch.library.opcheck(torch.ops.vpdarts_triton.mixed_cell.default, (*leaves, seeds, dropout, 1e-5))


class NoKernel:
    """Of a launch on tensors without values only the host code matters."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **sizes: None


@pytest.mark.parametrize("wants", [(True, True, False), (False, False, True)], ids=["weights", "alpha"])
def test_the_host_code_of_a_cell_can_be_captured(
    wants: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = importlib.import_module("vpdarts_fast.backends.triton.mixed_cell")
    monkeypatch.setattr(cell, "differentiate_node", NoKernel())
    for kernel in (
        "block_statistics",
        "combine_statistics",
        "form_node",
        "add_up_parts",
        "differentiate_raws",
    ):
        monkeypatch.setattr(sum_kernels, kernel, NoKernel())
    *tensors, dropout = mixed_cell_args(dtype=torch.float32)
    x, weight_1x1, weight_3x3, alpha, seeds = (tensor.to(META) for tensor in tensors)
    arguments = x, weight_1x1, weight_3x3, alpha, seeds, dropout, 1e-5
    cell._forward._init_fn(*arguments)  # indices are made
    with Watch():
        node, mean, variance, others = cell._forward._init_fn(*arguments)
        cell._backward._init_fn(node, x, *arguments[3:], mean, variance, others, *wants)


def test_mixed_sum_is_a_well_behaved_operator() -> None:
    xs, raw_1x1, raw_3x3, alpha, scales = mixed_sum_args(v=1, k=1, size=(2, 3), dtype=torch.float32)
    for tensor in flat([xs, raw_1x1, raw_3x3, alpha, scales]):
        tensor.requires_grad_()
    arguments = (xs, raw_1x1, raw_3x3, alpha, scales, None, 0.0, 1e-5)
    torch.library.opcheck(torch.ops.vpdarts_triton.mixed_sum.default, arguments)


@pytest.mark.parametrize("op", ["mixed_sum", "mixed_cell"])
def test_compiles_as_one_graph(op: str, assert_close: Close) -> None:
    make = {"mixed_sum": mixed_sum_args, "mixed_cell": mixed_cell_args}[op]
    args = make(v=1, n=2, c=3, size=(3, 4), dtype=torch.float32)
    function = partial(getattr(ops, op), backend="triton")
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    expected = gradients(getattr(reference, op), double(args), node_only)
    for gradient, wanted in zip(gradients(compiled, args, node_only), expected, strict=True):
        assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        ("x", {"differentiate_node": 3, "add_up_parts": 2, "differentiate_raws": 2}),
        ("weights", {"differentiate_node": 2, "add_up_parts": 2, "differentiate_raws": 2}),
        ("alpha", {"differentiate_node": 3, "add_up_parts": 3, "differentiate_raws": 1}),
    ],
)
def test_of_a_cell_only_what_is_wanted_is_launched(
    wanted: str, kernels: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = mixed_cell_args(c=2, size=(2, 3), nodes=3, dtype=torch.float32)
    leaf = args[{"x": 0, "weights": 1, "alpha": 3}[wanted]].requires_grad_()
    node = ops.mixed_cell(*args, backend="triton")[0]
    launched = launches(monkeypatch)
    weighted_sum([node]).backward()  # type: ignore[no-untyped-call]
    assert launched == kernels and leaf.grad is not None


def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel is launched from now on."""
    launched: Counter[str] = Counter()
    run = InterpretedFunction.run

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched[self.fn.__name__] += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", record)
    return launched


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        ("x", {"reduce_gradient"}),
        ("alpha", {"reduce_gradient", "add_up_parts"}),
        ("raw", {"reduce_gradient", "add_up_parts", "differentiate_raws"}),
    ],
)
def test_only_what_is_wanted_is_launched(
    wanted: str, kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    xs, raw_1x1, raw_3x3, alpha, _ = mixed_sum_args(v=1, k=1, size=(2, 3), dtype=torch.float32)
    leaf = {"x": xs[0], "alpha": alpha, "raw": raw_3x3[0]}[wanted].requires_grad_()
    node = ops.mixed_sum(xs, raw_1x1, raw_3x3, alpha, backend="triton")[0]
    launched = launches(monkeypatch)
    weighted_sum([node]).backward()  # type: ignore[no-untyped-call]
    assert set(launched) == kernels and leaf.grad is not None


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_products_of_float32_are_as_exact_as_pytorchs(setting: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert float32_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
