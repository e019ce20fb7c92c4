"""Triton kernels compiled without a GPU: what they need of one, and that they use its tensor cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compile_cache
import pytest
import torch
from op_arguments import masked_cell_args, mixed_cell_args, mixed_sum_args
from op_contract import channels_last, flat

triton = pytest.importorskip("triton")

from triton_compiler import Launch, compiled_launches  # noqa: E402

from vpdarts_fast.backends.triton.availability import interpreted  # noqa: E402
from vpdarts_fast.backends.triton.masked_cell import masked_cell  # noqa: E402
from vpdarts_fast.backends.triton.mixed_cell import mixed_cell  # noqa: E402
from vpdarts_fast.backends.triton.mixed_sum import mixed_sum_with_dropout  # noqa: E402

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")

SIZE = (32, 32)
TENSOR_CORES = r"(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA)[.\w]*"

Compile = Callable[[int, Callable[[], Any]], list[Launch]]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(compile_cache.CACHE / "triton"))  # its keys say all

    def launches(capability: int, call: Callable[[], Any]) -> list[Launch]:
        with compiled_launches(capability, tmp_path) as found:
            call()
        return found

    yield launches


def last_to_channels(args: Any) -> Any:
    """Tensors of a node's size, channels last, as they are on a GPU."""
    if isinstance(args, list):
        return [last_to_channels(arg) for arg in args]
    return channels_last(args) if isinstance(args, torch.Tensor) and args.dim() == 5 else args


def cell_arguments(c: int, dtype: torch.dtype) -> list[Any]:
    x, *others = masked_cell_args(v=2, n=2, c=c, size=SIZE, dtype=dtype, nodes=3)
    return [channels_last(x), *others]


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_masked_cell_in_half_precision(capability: int, compiled: Compile) -> None:
    args = cell_arguments(64, torch.bfloat16)
    check_masked_cell(capability, compiled(capability, lambda: masked_cell(*args)))


@pytest.mark.parametrize(("capability", "c"), [(80, 16), (90, 64)])
def test_masked_cell_in_tf32(capability: int, c: int, compiled: Compile) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = compiled(capability, lambda: masked_cell(*cell_arguments(c, torch.float32)))
    finally:
        torch.set_float32_matmul_precision(before)
    check_masked_cell(capability, found)


def check_masked_cell(capability: int, found: list[Launch]) -> None:
    """No spills; 8 warps a multiprocessor in every configuration, 12 in the best; tensor cores."""
    nodes = [launch for launch in found if launch.name == "cell_node"]
    assert {launch.name for launch in found} == {"cell_node", "fold_weights"}
    assert len(nodes) == 2 * 3  # nodes with one and with two edges, three configurations
    for launch in found:
        assert launch.resources["STACK"] == launch.resources["LOCAL"] == 0, launch.summary
        assert launch.warps_per_multiprocessor >= 8, launch.summary
    for launch in nodes:
        assert launch.count(TENSOR_CORES) > 0 and launch.count(r"FFMA[.\w]*") < 4000, launch.summary
        assert launch.shared <= 64 * 1024, launch.summary  # a block fits in any of them, 99 KB at least
        if capability >= 90 and capability != 120:
            assert launch.count(r"HGMMA[.\w]*|UTC\w*MMA[.\w]*") > 0, launch.summary
    assert max(launch.warps_per_multiprocessor for launch in nodes) >= 12


@pytest.mark.parametrize(
    ("capability", "c"), [(80, 16), (80, 32), (90, 64), (100, 32), (120, 16), (120, 32), (120, 64)]
)
def test_masked_cell_in_exact_float32(capability: int, c: int, compiled: Compile) -> None:
    """No tensor cores, and no spills; 8 warps a multiprocessor in every configuration, 16 in the best."""
    found = compiled(capability, lambda: masked_cell(*cell_arguments(c, torch.float32)))
    nodes = [launch for launch in found if launch.name == "cell_node"]
    assert len(nodes) == 2 * 3
    for launch in nodes:
        assert launch.resources["STACK"] == launch.resources["LOCAL"] == 0, launch.summary
        assert launch.count(TENSOR_CORES) == 0 and launch.count(r"FFMA[.\w]*") > 50, launch.summary
        assert launch.warps_per_multiprocessor >= 8, launch.summary
    for some in (nodes[:3], nodes[3:]):
        assert max(launch.warps_per_multiprocessor for launch in some) >= 16


WARPS = {
    "block_statistics": 32,
    "combine_statistics": 24,
    "form_node": 12,
    "reduce_gradient": 24,
    "differentiate_node": 12,
    "add_up_parts": 32,
    "differentiate_raws": 24,
}
"""Kernel of mixed_sum and mixed_cell -> warps a multiprocessor at least, of 64 (48)."""


@pytest.mark.parametrize(
    ("capability", "c", "dtype"),
    [(80, 16, torch.float32), (90, 64, torch.bfloat16), (120, 32, torch.float32)],
)
def test_mixed_sum(capability: int, c: int, dtype: torch.dtype, compiled: Compile) -> None:
    """No spills, occupancy as stated, and 16 bytes a load wherever a tensor is read."""
    args = last_to_channels(mixed_sum_args(1, 3, 2, c, SIZE, dtype, dropout=False)[:4])
    for tensor in flat(args):
        tensor.requires_grad_()

    def forward_and_backward() -> None:
        seeds = torch.zeros(3, dtype=torch.int64)
        node = mixed_sum_with_dropout(*args, seeds, 0.2, 1e-5)[0]
        node.backward(torch.empty_like(node))  # type: ignore[no-untyped-call]

    found = compiled(capability, forward_and_backward)
    assert {launch.name for launch in found} == set(WARPS) - {"differentiate_node"}
    check_memory_bound(found)


@pytest.mark.parametrize(
    ("capability", "c", "dtype", "trained", "nodes"),
    [
        (80, 16, torch.float32, "weights", 3),
        (90, 64, torch.bfloat16, "alpha", 4),
        (100, 64, torch.float32, "alpha", 3),
        (120, 32, torch.float32, "weights", 4),
    ],
)
def test_mixed_cell(
    capability: int, c: int, dtype: torch.dtype, trained: str, nodes: int, compiled: Compile
) -> None:
    """Likewise, of a step of either phase; the whole cell once by each of Triton's two assemblers."""
    x, weight_1x1, weight_3x3, alpha, *dropout = mixed_cell_args(1, 2, c, SIZE, dtype, nodes)
    x = channels_last(x).requires_grad_()
    for tensor in (weight_1x1, weight_3x3) if trained == "weights" else (alpha,):
        tensor.requires_grad_()

    def forward_and_backward() -> None:
        node = mixed_cell(x, weight_1x1, weight_3x3, alpha, *dropout)[0]
        node.backward(torch.empty_like(node))  # type: ignore[no-untyped-call]

    found = compiled(capability, forward_and_backward)
    assert {launch.name for launch in found} == set(WARPS) - {"reduce_gradient"}
    check_memory_bound(found)


def check_memory_bound(found: list[Launch]) -> None:
    for launch in found:
        assert launch.resources["STACK"] == launch.resources["LOCAL"] == 0, launch.summary
        assert launch.warps_per_multiprocessor >= WARPS[launch.name], launch.summary
        assert launch.shared <= 4096, launch.summary
        assert launch.count(r"LDG\.E\.128[.\w]*") > 0, launch.summary
        assert launch.count(r"LDG\.E\.U16[.\w]*") <= 4 * 3, launch.summary  # alphas
        assert launch.count(r"(?:ATOM|RED)[.\w]*") == 0, launch.summary  # sums in a fixed order
