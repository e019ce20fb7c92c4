"""The native CPU ops beyond their contract: instruction sets, bad calls, threads, blocks, tracing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cpu_op_cases import CHECKS, all_equal, thread_count
from fresh_process import run_python
from op_contract import Close, normal, true_derivatives, weighted_sum
from places import ROOT, TESTS
from torch import Tensor

from vpdarts_fast import native, ops
from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.contract import reference

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}"),
]


def arguments(v: int = 25, n: int = 3, c: int = 8, size: int = 9, shared: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    alpha = normal(6, 5).repeat(v, 1, 1)
    for variant in range(1, v):
        alpha[variant, variant % 6, variant % 5] = 0
    x = normal(1 if shared else v, n, c, size, size)
    weights = normal(6, c, c, 1, 1) / c, normal(6, c, c, 3, 3) / (3 * c)
    return [x, *weights, normal(6, 2, c), normal(6, 2, c).abs() + 0.5, alpha]


def masked_cell(*args: Tensor) -> Tensor:
    out: Tensor = torch.ops.vpdarts_fast.masked_cell(*args, 1e-5)
    return out


def mixed_cell_args(n: int = 5, c: int = 8, size: int = 9) -> list[Any]:
    """Of torch.ops.vpdarts_fast.mixed_cell; those that have a gradient require it."""
    weights = normal(6, c, c, 1, 1, seed=1) * c**-0.5, normal(6, c, c, 3, 3, seed=2) * (c**-0.5 / 3)
    tensors = [normal(n, c, size, size), *weights, normal(6, 5, seed=3) / 2]
    return [
        *(t.float().requires_grad_() for t in tensors),
        torch.arange(6) * 1_000_003 - 2**40,
        0.25,
        1e-3,
        False,
    ]


def outputs_and_gradients(args: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All that mixed_cell returns, and the gradients of the four that have one."""
    leaves = [t.detach().requires_grad_() for t in args[:4]]
    outputs = list(torch.ops.vpdarts_fast.mixed_cell(*leaves, *args[4:]))
    gradients = torch.autograd.grad(weighted_sum(outputs[:1]), leaves)
    return [output.detach() for output in outputs], list(gradients)


def other_isas() -> list[str]:
    """Those that the tests of the ops do not run on in this process already."""
    return [isa for isa in native.supported_isas() if isa != native.cpu_isa()] if native.available() else []


@pytest.mark.parametrize("isa", other_isas())
def test_every_instruction_set_meets_the_op_contract(isa: str) -> None:
    """In a process of its own, since an instruction set is chosen once."""
    ops_of_cpu = BACKENDS[0].implementations
    files = [str(path) for op in ops_of_cpu for path in (TESTS / "ops").glob(f"test_{op}*.py")]
    assert BACKENDS[0].name == "cpu"
    environment = {"VPDARTS_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *files]
    status, output = run_python(arguments, ROOT, environment)
    assert status == 0 and " passed" in output, output[-3000:]


@pytest.mark.parametrize("c", [16, 32, 64])
def test_a_unit_of_many_images_and_tails(c: int) -> None:
    """Blocks of several images with a smaller last one, more than six tiles, two blocks of channels."""
    for size, n in ((4, 7), (8, 9), (17, 2)):
        for shared in (True, False):
            args = arguments(v=7, n=n, c=c, size=size, shared=shared)
            expected = reference.masked_cell(*(arg.double() for arg in args))
            error = (masked_cell(*args).double() - expected).abs().max() / expected.abs().max()
            assert error < 1e-5


@pytest.mark.parametrize("c", [16, 32, 64])
@pytest.mark.parametrize(("size", "n"), [(4, 13), (8, 9), (17, 2)])
def test_mixed_cell_of_many_images_and_tails(c: int, size: int, n: int, assert_close: Close) -> None:
    """Blocks of several images with a smaller last one, more than six tiles; values and gradients."""
    args = mixed_cell_args(n, c, size)

    def true(exact: list[Any]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in exact[:4]]
        x, weight_1x1, weight_3x3, alpha = leaves
        outputs = reference.mixed_cell(x[None], weight_1x1, weight_3x3, alpha[None], *exact[4:])
        first = [output[0] for output in outputs]
        return [*first, *torch.autograd.grad(weighted_sum(first[:1]), leaves)]

    expected = true_derivatives(true, args)
    outputs, gradients = outputs_and_gradients(args)
    for actual, wanted in zip([*outputs[:3], *gradients], expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_thread_count_does_not_change_a_bit(threads: int) -> None:
    args = arguments()
    expected = masked_cell(*args)
    with thread_count(threads):
        assert torch.equal(masked_cell(*args), expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_mixed_cell_is_repeatable(threads: int, assert_close: Close) -> None:
    """Outputs do not depend on the thread count; gradients are sums whose order it fixes."""
    args = mixed_cell_args(n=11)
    with thread_count(1):
        expected, expected_gradients = outputs_and_gradients(args)
    with thread_count(threads):
        first = outputs_and_gradients(args)[1]
        for _ in range(5):
            outputs, gradients = outputs_and_gradients(args)
            assert all_equal(outputs, expected)
            assert all_equal(gradients, first)
    for gradient, wanted in zip(first, expected_gradients, strict=True):
        assert_close(gradient, wanted)


def test_several_python_threads_at_once() -> None:
    args, mixed_args = arguments(), mixed_cell_args()
    expected = masked_cell(*args)
    # Intra-op threads are counted anew in a Python thread: there, one each.
    with thread_count(1), ThreadPoolExecutor(4, initializer=lambda: torch.set_num_threads(1)) as pool:
        outputs, gradients = outputs_and_gradients(mixed_args)
        mixed = [pool.submit(outputs_and_gradients, mixed_args) for _ in range(16)]
        masked = [pool.submit(masked_cell, *args) for _ in range(16)]
        assert all(torch.equal(future.result(), expected) for future in masked)
        for future in mixed:
            assert all_equal(future.result()[0], outputs) and all_equal(future.result()[1], gradients)


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(1, 3, 8, 9, 9, dtype=torch.float64), "x must be float32"),
        (0, torch.zeros(3, 8, 9, 9), r"x must be \[V, N, C, H, W\]"),
        (0, torch.zeros(4, 3, 8, 9, 9), "x must have 1 or 25 variants; got 4"),
        (1, torch.zeros(6, 8, 7, 1, 1), r"weight_1x1 must have shape \[6, 8, 8, 1, 1\]"),
        (2, torch.zeros(5, 8, 8, 3, 3), r"weight_3x3 must have shape \[6, 8, 8, 3, 3\]"),
        (3, torch.zeros(6, 16), r"mean must have shape \[6, 2, 8\]"),
        (4, torch.zeros(6, 2, 8, dtype=torch.int64), "variance must be float32"),
        (5, torch.zeros(25, 5, 5), "alpha must have 1, 3, 6, 10 or 15 edges; got 5"),
        (5, torch.zeros(0, 6, 5), "alpha must have at least one variant"),
        (5, torch.zeros(25, 6, 4), r"alpha must have shape \[25, 6, 5\]"),
    ],
)
def test_hostile_arguments_are_refused_by_the_native_side(position: int, bad: Tensor, message: str) -> None:
    args = arguments()
    args[position] = bad
    with pytest.raises(RuntimeError, match=f"masked_cell: {message}"):
        masked_cell(*args)


def test_a_nan_stays_in_its_image_and_is_not_swallowed() -> None:
    args = arguments()
    args[0][0, 1, 2, 4, 4] = torch.nan
    out = masked_cell(*args)
    assert out[:, 1].isnan().any()
    assert out[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(5, 8, 9, 9, dtype=torch.float64), "x must be float32"),
        (0, torch.zeros(1, 5, 8, 9, 9), r"x must be \[N, C, H, W\]; got 5 dimensions"),
        (0, torch.zeros(1, 8, 1, 1), r"x must hold two values per channel; got N, C, H, W = \[1, 8, 1, 1\]"),
        (1, torch.zeros(6, 8, 7, 1, 1), r"weight_1x1 must have shape \[6, 8, 8, 1, 1\]"),
        (2, torch.zeros(6, 8, 8, 9), r"weight_3x3 must have shape \[6, 8, 8, 3, 3\]"),
        (3, torch.zeros(()), r"alpha must be \[E, 5\]; got 0 dimensions"),
        (3, torch.zeros(5, 5), "alpha must have 1, 3, 6, 10 or 15 edges; got 5"),
        (3, torch.zeros(6, 4), r"alpha must have shape \[6, 5\]"),
        (4, torch.zeros(6), "skip_seed must be int64"),
        (4, torch.zeros(5, dtype=torch.int64), r"skip_seed must have shape \[6\]"),
        (5, 1 - 2**-33, r"skip_dropout must be in \[0, 1 - 2\^-32\]"),
        (5, float("nan"), r"skip_dropout must be in \[0, 1 - 2\^-32\]; got nan"),
    ],
)
def test_hostile_arguments_of_mixed_cell_are_refused_by_the_native_side(
    position: int, bad: Any, message: str
) -> None:
    args = mixed_cell_args()
    args[position] = bad
    with pytest.raises(RuntimeError, match=f"mixed_cell: {message}"):
        torch.ops.vpdarts_fast.mixed_cell(*args)


@pytest.mark.parametrize("c", [5, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_schema_and_fake(c: int, shared: bool) -> None:
    args = (*arguments(v=3, c=c, shared=shared), 1e-5)
    op = torch.ops.vpdarts_fast.masked_cell.default
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def test_compiles_without_a_graph_break() -> None:
    args = arguments(v=3)
    compiled = torch.compile(lambda *args: masked_cell(*args) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), masked_cell(*args) * 2)


@pytest.mark.parametrize("c", [5, 8])
def test_schema_fake_and_autograd_of_mixed_cell(c: int) -> None:
    args = mixed_cell_args(c=c)
    torch.library.opcheck(torch.ops.vpdarts_fast.mixed_cell.default, tuple(args), test_utils=CHECKS)
    x, *weights, alpha, seeds, dropout, eps, _ = (a.detach() if isinstance(a, Tensor) else a for a in args)
    variants = x[None], *weights, alpha.repeat(3, 1, 1), seeds, dropout, eps, True
    torch.library.opcheck(torch.ops.vpdarts_fast.mixed_cell_variants.default, variants, test_utils=CHECKS[:2])
    inputs = x, *weights, alpha, seeds, dropout, eps, False
    node, _, _, *saved = torch.ops.vpdarts_fast.mixed_cell(*inputs)
    backward = torch.ops.vpdarts_fast.mixed_cell_backward.default
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        call = torch.ones_like(node), *inputs, *saved, *wanted
        torch.library.opcheck(backward, call, test_utils=CHECKS[:2])


@pytest.mark.parametrize("variants", [1, 2])
def test_mixed_cell_compiles_without_a_graph_break(variants: int) -> None:
    """The public function, forward and backward."""
    x, *weights, alpha, seeds, dropout, eps, _ = mixed_cell_args()
    tables = torch.stack([alpha.detach() * (v + 1) for v in range(variants)])

    def loss(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        node, mean, _ = ops.mixed_cell(x, weight_1x1, weight_3x3, alpha, seeds, dropout, eps, backend="cpu")
        return (node * torch.cos(node)).sum(), mean

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x[None], *weights, tables)]
        value, mean = function(*leaves)
        return [value.detach(), mean, *torch.autograd.grad(value, leaves)]

    assert all_equal(run(torch.compile(loss, fullgraph=True, backend="aot_eager")), run(loss))
