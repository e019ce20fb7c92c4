"""Triton kernels compiled without a GPU, as the host code launches them; and what they compiled to."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

MULTIPROCESSOR = {80: (164, 2048), 90: (228, 2048), 100: (228, 2048), 120: (100, 1536)}
"""Compute capability -> KB of shared memory and threads of a multiprocessor; all have 64 K registers."""

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class OfflineDriver:
    """Stands for a GPU of a compute capability that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # the key of a kernel's cache

    def get_current_stream(self, device: int) -> int:
        return 0


def run_tool(name: str, content: bytes, folder: Path, *options: str) -> str:
    """What a tool writes of a file in this folder with this content."""
    file = folder / "kernel.cubin"
    file.write_bytes(content)
    run = subprocess.run([TOOLS / name, *options, file], capture_output=True, text=True, check=True)
    return run.stdout


def machine_code(cubin: bytes) -> bytes:
    """The instructions of an ELF file of 64 bits with one kernel."""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    (code,) = (
        cubin[start : start + length]
        for name, _, _, _, start, length in sections
        if cubin.startswith(b".text.", sections[names][4] + name)
    )
    return code


def disassembled(capability: int, cubins: Sequence[bytes], folder: Path) -> list[str]:
    """The instructions of each, a line each. All in one file: the tool's start takes longer than they do."""
    codes = [machine_code(cubin) for cubin in cubins]
    architecture = f"SM{capability}{'a' if capability >= 90 else ''}"
    lines = iter(run_tool("nvdisasm", b"".join(codes), folder, "--binary", architecture).splitlines())
    instructions = (line for line in lines if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line))
    pieces = [list(islice(instructions, len(code) // 16)) for code in codes]  # of 16 bytes each
    assert [len(piece) * 16 for piece in pieces] == list(map(len, codes)) and not list(instructions)
    return list(map("\n".join, pieces))


@dataclass(frozen=True)
class Launch:
    """A kernel as a launch compiled it.

    Attributes:
        capability: what it is compiled for, 90 for sm_90.
        name: of the kernel.
        cubin: its machine code.
        code: the disassembly, an instruction a line.
        warps: of a block.
        shared: bytes of a block.
        config: the sizes it was launched with.
        folder: for the tools' files.
    """

    capability: int
    name: str
    cubin: bytes
    code: str
    warps: int
    shared: int
    config: dict[str, Any]
    folder: Path

    @cached_property
    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL, SHARED ... as cuobjdump reports them."""
        report = run_tool("cuobjdump", self.cubin, self.folder, "--dump-resource-usage")
        return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", report)}

    @property
    def summary(self) -> str:
        """For messages."""
        of = f"{self.name} {self.config} for sm_{self.capability}, {self.warps} warps"
        return f"{of}: {self.resources}, {self.shared} bytes shared, {self.warps_per_multiprocessor} warps"

    def count(self, instruction: str) -> int:
        """How many instructions match the expression."""
        return len(re.findall(rf"\s{instruction}\b", self.code))

    @property
    def warps_per_multiprocessor(self) -> int:
        """As registers, shared memory (1 KB a block is the driver's) and the number of threads allow."""
        shared, threads = MULTIPROCESSOR[self.capability]
        registers = -(-self.resources["REG"] // 8) * 8 * 32 * self.warps
        blocks = min(65536 // registers, shared * 1024 // (self.shared + 1024), threads // (32 * self.warps))
        return blocks * self.warps


@contextmanager
def compiled_launches(capability: int, folder: Path) -> Iterator[list[Launch]]:
    """Kernels that are launched inside, in every configuration, are compiled instead; listed at the end."""
    launches: list[Launch] = []
    compiled: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
    run_kernel, run_tuned = JITFunction.run, Autotuner.run

    def compile_kernel(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run_kernel(self, *args, grid=grid, warmup=True, **kwargs)
        sizes = {key: value for key, value in kwargs.items() if key.isupper()}
        compiled.setdefault((self.__name__, kernel.hash), (kernel, sizes))

    def compile_configs(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    before = driver._active
    driver.set_active(OfflineDriver(capability))
    JITFunction.run, Autotuner.run = compile_kernel, compile_configs
    try:
        yield launches
    finally:
        JITFunction.run, Autotuner.run = run_kernel, run_tuned
        driver._active = before
    codes = disassembled(capability, [kernel.asm["cubin"] for kernel, _ in compiled.values()], folder)
    for ((name, _), (kernel, sizes)), code in zip(compiled.items(), codes, strict=True):
        cubin, metadata = kernel.asm["cubin"], kernel.metadata
        launches.append(
            Launch(capability, name, cubin, code, metadata.num_warps, metadata.shared, sizes, folder)
        )
