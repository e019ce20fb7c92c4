"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and with too wide vectors.

Every source is compiled once for each way in which it matters: the kernels for each width of vectors, the
ops and the programs that test them for all. The programs have their buffers on the heap, where sanitizers
watch what the kernels do with them; what they compute in the kernels' place need not be watched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import compile_cache
import pytest
from compile_cache import digest_of, version_of
from cpu_features import needs_avx2
from places import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("g++")
# Sanitizers slow the compiler down far more than these programs: unoptimised, both take a quarter.
SANITIZE = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
AVX2 = ["-mavx2", "-mfma"]


PROGRAMS = {
    "masked_cell": ["cpu/kernels/masked_cell.cpp", "cpu/ops/masked_cell_plan.cpp"],
    "mixed_cell": [
        "cpu/kernels/relu_conv.cpp",
        "cpu/kernels/mixed_cell.cpp",
        "cpu/ops/batch_norm.cpp",
        "cpu/ops/mixed_cell_passes.cpp",
        "cpu/ops/mixed_cell_passes_backward.cpp",
    ],
    "mixed_op": [
        "cpu/kernels/mixed_op.cpp",
        "cpu/ops/batch_norm.cpp",
        "cpu/ops/mixed_op_passes.cpp",
        "cpu/ops/mixed_op_passes_backward.cpp",
        "cpu/ops/mixed_op_passes_fixed.cpp",
    ],
    "node": [
        "cpu/kernels/gather.cpp",
        "cpu/kernels/relu_conv.cpp",
        "cpu/kernels/mixed_sum.cpp",
    ],
    "relu_pointwise": ["cpu/kernels/relu_pointwise.cpp"],
    "residual_block": [
        "cpu/kernels/residual_block.cpp",
        "cpu/kernels/trained_residual_block.cpp",
        "cpu/kernels/relu_conv.cpp",
        "cpu/ops/batch_norm.cpp",
        "cpu/ops/trained_residual_block_passes.cpp",
    ],
}
"""Name of tests/native/<name>_test.cpp -> the sources that it tests."""


def compiled(source: str, *flags: str) -> Path:
    """The object of a source, named from the root."""
    assert COMPILER is not None
    # VPDARTS_ISA is no more than the name of a namespace: with one for all, a program calls any kernels.
    options = ["-std=c++17", "-ffp-contract=fast", "-Wno-psabi", "-DVPDARTS_ISA=baseline"]
    command = [COMPILER, *options, "-Icsrc", "-Itests/native/stand_in", *flags, "-c", source]

    def build(folder: Path) -> None:
        run = subprocess.run([*command, "-o", str(folder / "o")], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]

    digest = digest_of([ROOT / "csrc", ROOT / "tests" / "native"])
    return compile_cache.compiled([*command, version_of(COMPILER), digest], build) / "o"


def link_and_run(program: str, lanes: int, kernel_flags: list[str], folder: Path) -> None:
    """Fails with the compiler's or the program's words."""
    assert COMPILER is not None
    of_kernels = [f"-DVPDARTS_LANES={lanes}", *kernel_flags]
    objects = [
        compiled(f"csrc/{source}", *(of_kernels if source.startswith("cpu/kernels/") else SANITIZE))
        for source in PROGRAMS[program]
    ]
    # Last: of functions that several objects have, the linker takes the first, a sanitized one.
    objects.append(compiled(f"tests/native/{program}_test.cpp", "-O1"))
    linking = [COMPILER, *SANITIZE, *map(str, objects), "-o", str(folder / program)]
    linked = subprocess.run(linking, capture_output=True, text=True)
    assert linked.returncode == 0, linked.stderr[-3000:]
    run = subprocess.run([folder / program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout == "0 failed\n"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("lanes", "flags"),
    [
        pytest.param(4, SANITIZE, id="baseline-sanitized"),
        pytest.param(8, [*AVX2, *SANITIZE], id="avx2-sanitized", marks=needs_avx2),
        # What AVX-512 is compiled from, the compiler splitting the vectors.
        pytest.param(16, [*AVX2, "-O1"], id="16-lanes-on-avx2", marks=needs_avx2),
    ],
)
@pytest.mark.thorough
def test_native_kernels(program: str, lanes: int, flags: list[str], tmp_path: Path) -> None:
    link_and_run(program, lanes, flags, tmp_path)
