"""Triton kernels compiled without a GPU, as the host code launches them; and what they compiled to."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Launch:
    """A kernel as a launch compiled it.

    Attributes:
        capability: what it is compiled for, 90 for sm_90.
        name: of the kernel.
        cubin: its machine code.
        warps: of a block.
        shared: bytes of a block.
        config: the sizes it was launched with.
        folder: for the tools' files.
    """

    capability: int
    name: str
    cubin: bytes
    warps: int
    shared: int
    config: dict[str, Any]
    folder: Path

    def _tool(self, name: str, *options: str) -> str:
        file = self.folder / "kernel.cubin"
        file.write_bytes(self.cubin)
        run = subprocess.run([TOOLS / name, *options, file], capture_output=True, text=True, check=True)
        return run.stdout

    @cached_property
    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL, SHARED ... as cuobjdump reports them."""
        report = self._tool("cuobjdump", "--dump-resource-usage")
        return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", report)}

    @cached_property
    def code(self) -> str:
        """The disassembly."""
        return self._tool("nvdisasm", "--print-code", "--no-dataflow")

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
    """Kernels that are launched inside, in every configuration, are compiled instead and listed."""
    launches: list[Launch] = []
    seen: set[tuple[str, str]] = set()
    run_kernel, run_tuned = JITFunction.run, Autotuner.run

    def compile_kernel(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run_kernel(self, *args, grid=grid, warmup=True, **kwargs)
        if (self.__name__, kernel.hash) not in seen:
            seen.add((self.__name__, kernel.hash))
            sizes = {key: value for key, value in kwargs.items() if key.isupper()}
            cubin, metadata = kernel.asm["cubin"], kernel.metadata
            launches.append(
                Launch(capability, self.__name__, cubin, metadata.num_warps, metadata.shared, sizes, folder)
            )

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
