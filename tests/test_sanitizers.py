"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and with too wide vectors."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import compile_cache
import pytest
from compile_cache import digest_of, version_of

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("g++")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
AVX2 = ["-mavx2", "-mfma"]


def cpu_has_avx2() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and {"avx2", "fma"} <= set(cpuinfo.read_text().split())


needs_avx2 = pytest.mark.skipif(not cpu_has_avx2(), reason="this CPU has no AVX2")

PROGRAMS = {
    "masked_cell": ["cpu/kernels/masked_cell.cpp", "cpu/ops/cell_plan.cpp"],
    "mixed_cell": [
        "cpu/kernels/relu_conv.cpp",
        "cpu/kernels/mixed_sum.cpp",
        "cpu/ops/cell_statistics.cpp",
        "cpu/ops/training_cell.cpp",
        "cpu/ops/training_cell_backward.cpp",
    ],
    "mixed_op": [
        "cpu/kernels/mixed_op.cpp",
        "cpu/ops/cell_statistics.cpp",
        "cpu/ops/mixed_edge.cpp",
        "cpu/ops/mixed_edge_backward.cpp",
    ],
    "node": [
        "cpu/kernels/gather.cpp",
        "cpu/kernels/relu_conv.cpp",
        "cpu/kernels/mixed_sum.cpp",
        "cpu/kernels/raw_sum.cpp",
    ],
    "residual_block": [
        "cpu/kernels/residual_block.cpp",
        "cpu/kernels/trained_residual_block.cpp",
        "cpu/kernels/relu_conv.cpp",
        "cpu/ops/cell_statistics.cpp",
        "cpu/ops/training_residual.cpp",
    ],
}
"""Name of tests/native/<name>_test.cpp -> the sources that it tests."""


def compile_and_run(program: str, isa: str, lanes: int, flags: list[str]) -> None:
    """Fails with the compiler's or the program's words."""
    assert COMPILER is not None
    sources = [f"tests/native/{program}_test.cpp", *(f"csrc/{source}" for source in PROGRAMS[program])]
    # Sanitizers slow the compiler down far more than these programs: unoptimised, both take a quarter.
    level = "-O0" if SANITIZE[0] in flags else "-O1"
    options = ["-std=c++17", level, "-ffp-contract=fast", "-Wno-psabi", "-Icsrc", "-Itests/native/stand_in"]
    macros = [f"-DVPDARTS_ISA={isa}", f"-DVPDARTS_LANES={lanes}"]
    command = [COMPILER, *options, *macros, *flags, *sources]

    def build(folder: Path) -> None:
        compiled = subprocess.run(
            [*command, "-o", str(folder / program)], cwd=ROOT, capture_output=True, text=True
        )
        assert compiled.returncode == 0, compiled.stderr[-3000:]

    digest = digest_of([ROOT / "csrc", ROOT / "tests" / "native"])
    folder = compile_cache.compiled([*command, version_of(COMPILER), digest], build)
    run = subprocess.run([folder / program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout == "0 failed\n"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("isa", "lanes", "flags"),
    [
        pytest.param("baseline", 4, SANITIZE, id="baseline-sanitized"),
        pytest.param("avx2", 8, [*AVX2, *SANITIZE], id="avx2-sanitized", marks=needs_avx2),
        # What AVX-512 is compiled from, the compiler splitting the vectors.
        pytest.param("avx512", 16, AVX2, id="16-lanes-on-avx2", marks=needs_avx2),
    ],
)
def test_native_kernels(program: str, isa: str, lanes: int, flags: list[str]) -> None:
    compile_and_run(program, isa, lanes, flags)
