"""How much work a few calls take, in counts that no noise moves, to be held to recorded ones.

Of native code the instructions of tests/native/kernel_work.cpp, counted by Valgrind; of the Python road to it
the calls of functions of this package and the operations that PyTorch dispatches.

    python tests/support/work_counts.py    records in work_counts.json what is counted now, and prints changes
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from compile_cache import compiled, digest_of, version_of
from places import ROOT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vpdarts_fast
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import alpha_step, weights_step

RECORD = Path(__file__).with_suffix(".json")
PACKAGE = str(Path(vpdarts_fast.__file__).parent)

COMPILER = os.environ.get("CXX") or shutil.which("g++")
VALGRIND = shutil.which("valgrind")

TOLERANCE = 0.01
"""Of instructions and of calls, relative; all other counts are exact."""

FLAGS = (
    "-std=c++17 -O3 -DNDEBUG -ffp-contract=fast -Wno-psabi -mavx2 -mfma -DVPDARTS_ISA=avx2 -DVPDARTS_LANES=8"
)
"""As CMakeLists.txt has them for AVX2, which Valgrind knows; it does not know AVX-512."""

SOURCES = (
    "tests/native/kernel_work.cpp",
    "csrc/cpu/kernels/masked_cell.cpp",
    "csrc/cpu/kernels/mixed_op.cpp",
    "csrc/cpu/kernels/mixed_cell.cpp",
    "csrc/cpu/kernels/relu_conv.cpp",
    "csrc/cpu/kernels/relu_pointwise.cpp",
    "csrc/cpu/kernels/residual_block.cpp",
    "csrc/cpu/kernels/trained_residual_block.cpp",
    "csrc/cpu/ops/masked_cell_plan.cpp",
    "csrc/cpu/ops/batch_norm.cpp",
    "csrc/cpu/ops/mixed_op_passes.cpp",
    "csrc/cpu/ops/mixed_op_passes_backward.cpp",
    "csrc/cpu/ops/mixed_op_passes_fixed.cpp",
    "csrc/cpu/ops/mixed_cell_passes.cpp",
    "csrc/cpu/ops/mixed_cell_passes_backward.cpp",
    "csrc/cpu/ops/trained_residual_block_passes.cpp",
)

MEMORY = re.compile(r"_*(mem(?:set|cpy|move|align)|malloc|calloc|aligned_alloc|operator new)")
"""Functions of the C and C++ libraries that copy, clear or allocate memory. How many instructions these take
depends on the CPU, so their calls are counted."""

Counts = dict[str, int]


def compiler_version() -> str:
    """The compiler that this machine's counts are of."""
    assert COMPILER is not None
    run = subprocess.run([COMPILER, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True)
    return f"{Path(COMPILER).name} {run.stdout.strip()}"


def torch_version() -> str:
    """Major and minor: another one may dispatch other operations."""
    return ".".join(torch.__version__.split(".")[:2])


class NativeProgram:
    """tests/native/kernel_work.cpp with the sources that it needs, each compiled once.

    Args:
        folder: for what is built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = {source: kept_object(source) for source in SOURCES}

    def with_source(self, name: str, text: str) -> NativeProgram:
        """The same program, one of its sources replaced by this text."""
        other = object.__new__(NativeProgram)
        other.folder = self.folder / "other"
        other.folder.mkdir()
        source = other.folder / Path(name).name
        source.write_text(text)
        other.objects = self.objects | {name: compile_object(source, other.folder)}
        return other

    def counts(self) -> dict[str, Counts]:
        """Of each call its own instructions, and its calls of `MEMORY`."""
        program, out = self.folder / "kernel_work", self.folder / "counts"
        # Everything is bound before main, or the first call of a library function would take longer.
        finish([str(COMPILER), "-Wl,-z,now", *map(str, self.objects.values()), "-o", str(program)])
        options = ["--toggle-collect=work_*", "--dump-before=counted", "--compress-strings=no"]
        options += ["--compress-pos=no", f"--callgrind-out-file={out}"]
        finish([str(VALGRIND), "--tool=callgrind", *options, str(program)])
        dumps = sorted(self.folder.glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        return dict(counts_of_dump(dump.read_text(), str(program)) for dump in dumps)


def kept_object(source: str) -> Path:
    """Compiled, for as long as no source changes."""
    digest = digest_of([ROOT / "csrc", ROOT / "tests" / "native"])
    made_of = [str(COMPILER), version_of(str(COMPILER)), FLAGS, source, digest]

    def build(folder: Path) -> None:
        compile_object(ROOT / source, folder)

    return compiled(made_of, build) / f"{Path(source).stem}.o"


def compile_object(source: Path, folder: Path) -> Path:
    path = folder / f"{source.stem}.o"
    includes = [f"-I{ROOT / folder}" for folder in ("csrc", "tests/native/stand_in")]
    finish([str(COMPILER), *FLAGS.split(), *includes, "-c", str(source), "-o", str(path)])
    return path


def finish(command: list[str]) -> None:
    """Raises an error with the command's words if it fails."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")


def counts_of_dump(text: str, program: str) -> tuple[str, Counts]:
    """One call's name and counts, of a file in Callgrind's format."""
    (name,) = set(re.findall(r"^fn=work_(\w+)$", text, flags=re.MULTILINE))
    instructions = memory = 0
    inside = called_inside = calling = False
    called = ""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "ob":
            inside = called_inside = value == program
        elif key == "cob":
            called_inside = value == program
        elif key == "cfn":
            called = value
        elif key == "calls":  # the line behind it is what the call has cost
            if inside and not called_inside and MEMORY.match(called):
                memory += int(value.split()[0])
            called_inside, calling = inside, True
        elif line[:1].isdigit():
            instructions += int(line.split()[1]) if inside and not calling else 0
            calling = False
    return name, {"instructions": instructions, "memory calls": memory}


class Road(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, calls of this package's functions, and PyTorch's operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[func.name()] += 1
        return func(*args, **(kwargs or {}))

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        # Comprehensions are functions up to Python 3.11.
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            self.calls[code.co_name] += 1

    def count(self, call: Callable[[], object]) -> dict[str, Counts]:
        """Of a call, after two that fill caches."""
        call()
        call()
        gc.collect()
        gc.disable()  # finalisers would run in between
        before = sys.getprofile()
        try:
            with self:
                sys.setprofile(self._profile)
                call()
        finally:
            sys.setprofile(before)
            gc.enable()
        return {"calls": {"all": self.calls.total()}, "operations": dict(sorted(self.operations.items()))}


def training_step() -> Callable[[], object]:
    """A step of each phase, fused, on four images of 8x8."""
    torch.manual_seed(0)
    config = SearchConfig().replaced(channels=8, cells_per_stage=1, batch_size=4, fused=True)
    state = SearchState(config, 10, torch.device("cpu"))
    batch = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])

    def step() -> None:
        weights_step(
            state.supernet, state.alpha, batch, state.weights_optimizer, config.optimisers.gradient_clip
        )
        alpha_step(state.supernet, state.alpha, state.alive, batch, state.alpha_optimizer)

    return step


def evaluation() -> Callable[[], object]:
    """Leave-one-out of one batch, in the default mode."""
    torch.manual_seed(0)
    supernet = vpdarts_fast.Supernet(8, 1, 10, fused=True)
    alpha = supernet.new_alpha()
    batch = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    return lambda: vpdarts_fast.leave_one_out(supernet, [batch], alpha)


class MixedOp(nn.Module):
    """A mixed operation as other code bases write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        point = nn.Conv2d(channels, channels, 1, bias=False)
        norm = nn.BatchNorm2d(channels, affine=False)
        pool = nn.Sequential(
            nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(channels, affine=False)
        )
        self._ops = nn.ModuleList([nn.Identity(), pool, nn.Sequential(nn.ReLU(), conv, point, norm)])

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))  # type: ignore
        return out


def accelerated_mixed_op() -> Callable[[], object]:
    """Forward and backward pass of a mixed operation after `accelerate`."""
    torch.manual_seed(0)
    model = nn.Sequential(MixedOp(8))
    report = vpdarts_fast.accelerate(model)
    assert len(report.fused) == 1, report
    x = torch.randn(4, 8, 8, 8, requires_grad=True)
    weights = torch.full((3,), 0.3, requires_grad=True)
    return lambda: model[0](x, weights).sum().backward()


ROADS: Mapping[str, Callable[[], Callable[[], object]]] = {
    "training step": training_step,
    "leave-one-out": evaluation,
    "accelerated mixed operation": accelerated_mixed_op,
}
"""What is counted -> a function that prepares it."""


@dataclass(frozen=True)
class Change:
    """A count that is not as recorded."""

    name: str
    recorded: int
    counted: int

    def __str__(self) -> str:
        return f"{self.name}: {self.recorded:,} recorded, {self.counted:,} counted"


def changes(recorded: Mapping[str, Any], counted: Mapping[str, Any], name: str = "") -> Iterator[Change]:
    """What differs by more than the tolerance, in either direction; a count that is missing is 0."""
    for key in sorted({*recorded, *counted}):
        both = [some.get(key) for some in (recorded, counted)]
        path = f"{name}, {key}" if name else key
        if any(isinstance(some, Mapping) for some in both):
            yield from changes(*(some or {} for some in both), path)
            continue
        before, now = (some or 0 for some in both)
        allowed = TOLERANCE * before if path.endswith(("instructions", "calls, all")) else 0
        if abs(now - before) > allowed:
            yield Change(path, before, now)


@functools.cache
def record() -> dict[str, Any]:
    """What is recorded: "compiler", "torch", "native" and "python"."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def main() -> int:
    """Records everything anew."""
    torch.set_num_threads(1)
    if COMPILER is None or VALGRIND is None:
        print("error: this needs g++ and valgrind", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        native = NativeProgram(Path(folder)).counts()
    python = {name: Road().count(prepare()) for name, prepare in ROADS.items()}
    new = {"compiler": compiler_version(), "torch": torch_version(), "native": native, "python": python}
    for change in changes(*({k: some.get(k, {}) for k in ("native", "python")} for some in (record(), new))):
        print(change)
    RECORD.write_text(json.dumps(new, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
