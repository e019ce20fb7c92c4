"""The native CPU ops beyond the contract of test_ops.py: instruction sets, bad calls, threads, tracing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vpdarts_fast import native, reference

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}")


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


@pytest.mark.parametrize("isa", native.supported_isas() if native.available() else [])
def test_every_instruction_set_meets_the_op_contract(isa: str) -> None:
    """In a process of its own, since an instruction set is chosen once."""
    environment = os.environ | {"VPDARTS_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu"]
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [*command, "tests/test_masked_cell.py", "tests/test_mixed_cell.py"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("c", [16, 32, 64])
def test_a_unit_of_many_images_and_tails(c: int) -> None:
    """Blocks of several images with a smaller last one, more than six tiles, two blocks of channels."""
    for size, n in ((4, 7), (8, 9), (17, 2)):
        for shared in (True, False):
            args = arguments(v=7, n=n, c=c, size=size, shared=shared)
            expected = reference.masked_cell(*(arg.double() for arg in args))
            error = (masked_cell(*args).double() - expected).abs().max() / expected.abs().max()
            assert error < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_thread_count_does_not_change_a_bit(threads: int) -> None:
    args, before = arguments(), torch.get_num_threads()
    expected = masked_cell(*args)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(masked_cell(*args), expected)
    finally:
        torch.set_num_threads(before)


def test_several_python_threads_at_once() -> None:
    args = arguments()
    expected = masked_cell(*args)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: masked_cell(*args), range(16)))
    assert all(torch.equal(result, expected) for result in results)


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
