"""The CUDA sources, run on the CPU: the op contract, sanitizers, and faults that must be found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compile_cache
import pytest
import torch
from compile_cache import digest_of, version_of
from fresh_process import run_python
from places import ROOT

EMULATION = ROOT / "tests" / "gpu" / "cuda_emulation"
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("g++")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
UNOPTIMISED = ("-O0",)
"""Where sanitizers or a fault make a compiler work longer than what it compiles runs."""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

SOURCES = (
    "library.cpp",
    *(f"cuda/ops/{op}.cpp" for op in ("mixed_sum", "masked_cell")),
    *(f"cuda/kernels/{name}.cu" for name in ("mixed_sum", "mixed_sum_backward", "masked_cell")),
)


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


def includes(source: Path, header: str) -> bool:
    """Whether a source is this file or includes it, itself or through others of its folder."""
    included = re.findall(r'#include "([\w.]+)"', source.read_text())
    others = (source.parent / name for name in included)
    return source.name == header or any(includes(other, header) for other in others if other.exists())


def build(
    csrc: Path, flags: tuple[str, ...] = (), objects: Path | None = None, changed: str | None = None
) -> Path:
    """The emulated library.

    Args:
        csrc: the sources.
        flags: of the compiler, beside those of all.
        objects: the folder of a library of the same sources but for a file of the kernels.
        changed: that file; what does not include it is taken from `objects`, the rest compiled unoptimised.
    """
    assert COMPILER is not None
    options = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *flags]
    options += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-Itests/gpu/cuda_emulation"]
    made_of = [COMPILER, version_of(COMPILER), *options, digest_of([csrc, EMULATION])]

    def compile_and_link(folder: Path) -> None:
        linked = []
        for source in (EMULATION / "emulation.cpp", *(csrc / source for source in SOURCES)):
            name = f"{source.parent.name}-{source.name}.o"
            reused = None if changed is not None and includes(source, changed) else objects
            linked.append(str((reused or folder) / name))
            if reused is None:
                paths = [f"-I{csrc}", "-isystem", str(TORCH / "include")]
                is_host = source.suffix == ".cpp"
                level = UNOPTIMISED if changed is not None or (flags and is_host) else ()
                command = [COMPILER, *options, *level, *paths, "-x", "c++", "-c", str(source)]
                compiled = run([*command, "-o", linked[-1]])
                assert compiled.returncode == 0, compiled.stdout[-3000:]
                assert "warning" not in compiled.stdout, compiled.stdout[-3000:]
        libraries = ["-o", str(folder / "libemulated.so"), f"-L{TORCH}/lib", "-ltorch_cpu"]
        linking = run([COMPILER, "-shared", *flags, *linked, *libraries])
        assert linking.returncode == 0, linking.stdout[-3000:]

    return compile_cache.compiled(made_of, compile_and_link) / "libemulated.so"


def run_checks(library: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Runs tests with the emulated kernels as the backend `cuda`; the exit status and what pytest wrote."""
    paths = os.pathsep.join([str(EMULATION), os.environ.get("PYTHONPATH", "")])
    command = [
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "emulated_cuda",
        "-p",
        "no:cacheprovider",
        "-k",
        "cuda",
        *arguments,
    ]
    env |= {"PYTHONPATH": paths, "VPDARTS_EMULATED_LIBRARY": str(library)}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if "LD_PRELOAD" not in env:
        return run_python(command, ROOT, env)
    result = run([sys.executable, *command], **env)
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def emulated() -> Path:
    return build(ROOT / "csrc")


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build(ROOT / "csrc", SANITIZE)


@pytest.mark.parametrize("op", ["mixed_sum", "masked_cell"])
def test_emulated_kernels_hold_the_op_contract(emulated: Path, op: str) -> None:
    status, output = run_checks(emulated, f"tests/ops/test_{op}.py", VPDARTS_EMULATION_SCHEDULE="random:7")
    assert status == 0 and " passed" in output, output[-3000:]


def sanitizer_environment() -> dict[str, str]:
    """The sanitizer's library must come first in a process, and the one of exceptions with it."""
    assert COMPILER is not None
    names = ("libasan.so", "libstdc++.so.6")
    preload = [run([COMPILER, f"-print-file-name={name}"]).stdout.strip() for name in names]
    return {"LD_PRELOAD": ":".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.thorough
def test_emulated_kernels_under_sanitizers_in_every_schedule(sanitized: Path) -> None:
    status, output = run_checks(
        sanitized, "tests/gpu/cuda_emulation/kernel_checks.py", **sanitizer_environment()
    )
    assert status == 0 and " passed" in output, output[-3000:]


def broken_copy(folder: Path, file: str, right: str, wrong: str, place: int) -> Path:
    """csrc with one occurrence of a text exchanged."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    path = csrc / "cuda" / "kernels" / file
    pieces = path.read_text().split(right)
    assert len(pieces) > place + 1, f"{file} has no such place: {right}"
    path.write_text(right.join(pieces[: place + 1]) + wrong + right.join(pieces[place + 1 :]))
    return csrc


BARRIER, WARP_BARRIER = "__syncthreads();", "__syncwarp();"
FAULTS = {
    "no barrier between steps of a reduction": ("block.h", BARRIER, "", 0, "mixed_sum_schedules"),
    "no barrier before shifts are added up": ("mixed_sum.cu", BARRIER, "", 0, "mixed_sum_schedules"),
    "no barrier between nodes": ("masked_cell.cu", BARRIER, "", 0, "masked_cell_schedules"),
    "no barrier before a tile is overwritten": (
        "masked_cell.cu",
        WARP_BARRIER,
        "",
        0,
        "masked_cell_schedules",
    ),
    "no barrier before a tile is read": ("masked_cell.cu", WARP_BARRIER, "", 1, "masked_cell_schedules"),
    "a pool that counts one pixel too many": ("pack.h", "i < size - 1", "i < size", 0, "schedules"),
    "a pool that wraps around": ("mixed_sum.cu", "strip.column > 0", "strip.column >= 0", 0, "sum_schedules"),
    "a strip that is one row short": (
        "block.h",
        "? first + kStrip",
        "? first + kStrip - 1",
        0,
        "sum_schedules",
    ),
    "a row too many in a reduction": (
        "block.h",
        "half >= lanes.rows",
        "half > lanes.rows",
        0,
        "sum_schedules",
    ),
    "a wrong shuffle": ("mixed_sum_backward.cu", "distance = 16", "distance = 8", 0, "sum_schedules"),
    "a shuffle with missing lanes": (
        "mixed_sum_backward.cu",
        "alpha_gradient = sum_of_warp(alpha_gradient);",
        "if (lane < 31) alpha_gradient = sum_of_warp(alpha_gradient);",
        0,
        "sum_schedules",
    ),
    "threads that leave before a barrier": (
        "mixed_sum.cu",
        "  combine_rows(",
        "  if (!at.inside || at.row > 2) return;\n  combine_rows(",
        0,
        "sum_schedules",
    ),
    "no zeros between two images": (
        "masked_cell.cu",
        "image((s.height + 1) * row)",
        "image(s.height * row)",
        0,
        "groups_of_images",
    ),
    "weights of another variant": (
        "masked_cell.cu",
        "bits(u, 1) != bits(v, 1)",
        "bits(u, 1) != bits(u, 1)",
        0,
        "leaves_one_out",
    ),
}
"""What is broken -> file, the right text, the wrong one, which occurrence, the checks that must fail."""


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_found(emulated: Path, tmp_path: Path, fault: str) -> None:
    *change, checks = FAULTS[fault]
    library = build(broken_copy(tmp_path, *change), objects=emulated.parent, changed=change[0])
    status, output = run_checks(library, "tests/gpu/cuda_emulation/kernel_checks.py", "-x", "-k", checks)
    assert status == 1 and " failed" in output, f"not found:\n{output[-3000:]}"


def test_shared_memory_that_is_too_small_is_found(sanitized: Path, tmp_path: Path) -> None:
    csrc = broken_copy(
        tmp_path, "masked_cell.cu", "kWarps * kTile * kTile * 4", "kWarps * kTile * kTile * 4 - 4", 0
    )
    library = build(csrc, SANITIZE, sanitized.parent, "masked_cell.cu")
    checks = ["tests/gpu/cuda_emulation/kernel_checks.py", "-k", "masked_cell_in_half_precision and 16-size3"]
    status, output = run_checks(library, *checks, **sanitizer_environment())
    assert status != 0 and "heap-buffer-overflow" in output, output[-3000:]
