"""What nvcc makes of the kernels, read from its own reports: no GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from compile_cache import compiled, digest_of, version_of
from places import ROOT

NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")

THREADS = 256
"""A block of every kernel that has a budget here."""

SHARED_BYTES = 100 * 1024
"""Of a multiprocessor, the least among the GPUs with compute capability 8.0 or higher."""


@dataclass(frozen=True)
class Budget:
    """Registers of a thread and dynamic shared memory of a block, for as many blocks on a multiprocessor."""

    registers: int
    shared_bytes: int
    blocks: int


# Shared memory of a reduction: floats of a thread x 256 threads. That of cell_kernel depends on the cell.
BUDGETS = {
    "statistics_kernel": Budget(64, 17 * THREADS * 4, 4),
    "node_kernel": Budget(104, 0, 2),
    "reduce_kernel": Budget(128, 20 * THREADS * 4, 2),
    "raw_gradient_kernel": Budget(80, 0, 3),
    "cell_kernel": Budget(128, 0, 2),
}
"""Hot kernel -> what it may use, for all of its types."""


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel."""

    kernel: str
    registers: int
    stack: int
    spills: int
    shared_bytes: int


def architectures() -> list[int]:
    """Those of 80, 90, 100 and 120 that this nvcc knows."""
    if NVCC is None:
        return []
    known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [number for number in (80, 90, 100, 120) if f"compute_{number}\n" in f"{known}\n"]


def compile_cubin(source: str, architecture: int) -> tuple[Path, list[Usage]]:
    """csrc/cuda/kernels/<source> to a cubin; the kernels' usage."""
    assert NVCC is not None
    options = [
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "-O3",
        "-Icsrc",
        "-Xptxas",
        "-v",
        "-Werror",
        "all-warnings",
    ]
    command = [NVCC, *options, "-cubin", f"-arch=sm_{architecture}", f"csrc/cuda/kernels/{source}"]

    def build(folder: Path) -> None:
        result = subprocess.run(
            [*command, "-o", str(folder / "kernels.cubin")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-3000:]
        (folder / "report").write_text(result.stdout)

    folder = compiled([*command, version_of(NVCC), digest_of([ROOT / "csrc"])], build)
    usages = []
    for text in (folder / "report").read_text().split("Compiling entry function '")[1:]:
        name = re.search(r"\d((?:[a-z]+_)+kernel)(?=I|E)", text)
        memory = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers = re.search(r"Used (\d+) registers", text)
        assert name and memory and registers, text
        stack, stores, loads = map(int, memory.groups())
        shared = re.search(r"(\d+) bytes smem", text)
        shared_bytes = int(shared[1]) if shared else 0
        usages.append(Usage(name[1], int(registers[1]), stack, stores + loads, shared_bytes))
    return folder / "kernels.cubin", usages


def disassemble(cubin: Path) -> str | None:
    """By the nvdisasm on the path or in Triton's package; None if there is none."""
    tool = shutil.which("nvdisasm")
    triton = importlib.util.find_spec("triton")
    if tool is None and triton is not None and triton.origin is not None:
        tool = shutil.which(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"))
    if tool is None:
        return None
    return subprocess.run([tool, str(cubin)], capture_output=True, text=True, check=True).stdout


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", architectures())
@pytest.mark.parametrize("source", ["mixed_sum.cu", "mixed_sum_backward.cu", "masked_cell.cu"])
def test_kernels_stay_within_their_budgets(source: str, architecture: int) -> None:
    cubin, usages = compile_cubin(source, architecture)
    assert usages
    for usage in usages:
        assert usage.spills == 0, usage
        assert usage.stack == 0, usage
        assert usage.shared_bytes <= 1024, f"shared memory is dynamic: {usage}"
        if usage.kernel in BUDGETS:
            assert usage.registers <= BUDGETS[usage.kernel].registers, usage
    if source != "masked_cell.cu":
        return
    code = disassemble(cubin)
    if code is None:
        pytest.skip("no nvdisasm to look for tensor-core instructions with")
    of_kernel = {
        name: part for name, part in re.findall(r"\n\.text\.(\S+):\n(.*?)(?=\n\.text\.|\Z)", code, re.DOTALL)
    }
    cells = {name: part for name, part in of_kernel.items() if "cell_kernel" in name}
    assert len(cells) == 8
    for name, part in cells.items():
        on_tensor_cores = "TensorCores" in name
        assert ("HMMA" in part) == on_tensor_cores, name


@pytest.mark.parametrize("kernel", BUDGETS)
def test_budgets_give_the_stated_occupancy(kernel: str) -> None:
    """A multiprocessor has 65,536 registers, a warp takes them by 256; CUDA takes 1 KiB a block."""
    budget = BUDGETS[kernel]
    registers_of_warp = -(-budget.registers * 32 // 256) * 256
    assert 65536 // registers_of_warp // (THREADS // 32) >= budget.blocks
    assert SHARED_BYTES // (budget.shared_bytes + 1024) >= budget.blocks
