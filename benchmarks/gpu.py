"""What benchmarks/gpu.sh runs on a GPU: is it right, how fast is it, and what the cost model expected.

Every stage runs in a process of its own with a time limit and has a JSON file of its own, which is written
anew after each measurement: whatever ends a stage, or all of them, loses no measurement. What fails or takes
too long is in the file, and the next stage goes on. Nothing is timed before its result has been compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_calls import arguments, call_again, call_of, counted, error_of, placed
from torch import Tensor

import vpdarts_fast
from vpdarts_fast import leave_one_out, native
from vpdarts_fast.analysis.cost.phases import Setting, evaluation, training_steps
from vpdarts_fast.analysis.cost.roofline import (
    DTYPES,
    GPUS,
    Assumptions,
    Precision,
    Roofline,
    reported_gpu,
)
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.backends import registry
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runtime.precision import computing_in
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import alpha_step, weights_step

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 6e-2}
"""Greatest error of a result, relative to the largest element of the reference in float64."""

LIMITS = {
    "contract": 100,
    "ops-fp32": 80,
    "ops-tf32": 80,
    "ops-bf16": 80,
    "training": 60,
    "leave-one-out": 60,
}
"""Seconds that each stage may take, so that all of them and the build before end within ten minutes."""

LIMIT_ALONE = 120
"""Of a stage that is asked for alone."""

COUNTABLE = ("cuda", "triton", "pytorch")
"""Backends whose launches the cost model knows."""


Row = dict[str, Any]
"""A measurement."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        config: of the search whose steps and evaluations are timed.
        images: of an op's call, and of each of two evaluation batches.
        size: height and width of an image.
        stages: channels and size of the cells whose ops are timed.
        rounds: timings of which the median counts.
    """

    config: SearchConfig
    images: int
    size: int
    stages: tuple[tuple[int, int], ...]
    rounds: int


PAPER = Scale(SearchConfig(), 256, 32, ((16, 32), (32, 16), (64, 8)), 20)


def measure(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a call, after two for warming up; on a GPU between two of its events."""
    for _ in range(2):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return median(times)
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)
    ]
    for first, last in pairs:
        first.record()
        call()
        last.record()
    torch.cuda.synchronize(device)
    return median(first.elapsed_time(last) for first, last in pairs) / 1e3


def roofline_of(name: str, precision: Precision) -> Roofline | None:
    """The model of the GPU with this name, if there is one."""
    gpu = reported_gpu(name)
    return None if gpu is None else Roofline(gpu, precision, Assumptions())


def shared_bytes_of(name: str) -> int:
    """That a block may have on the GPU with this name; an H100's if its data sheet is not known."""
    return (reported_gpu(name) or GPUS["h100"]).shared_bytes


def result(seconds: float, tally: Tally | None, roofline: Roofline | None) -> dict[str, Any]:
    """A measurement next to its prediction."""
    row: dict[str, Any] = {"median_s": seconds}
    if tally is not None:
        row |= {
            "kernels": tally.kernels,
            "gb_per_s": tally.bytes / seconds / 1e9,
            "tflop_per_s": tally.flops / seconds / 1e12,
        }
        if roofline is not None:
            row["predicted_s"] = {"one_by_one": roofline.one_by_one(tally), "busy": roofline.busy(tally)}
    return row


def ops_stage(precision: Precision, device: torch.device, scale: Scale, name: str) -> Iterator[Row]:
    """Every op of the searches on every backend that serves it, in every stage of a network."""
    roofline = roofline_of(name, precision)
    with computing_in("tf32" if precision == "tf32" else "fp32", device):  # bf16 is that of the arguments
        yield from op_rows(precision, device, scale, roofline, shared_bytes_of(name))


def op_rows(
    precision: Precision, device: torch.device, scale: Scale, roofline: Roofline | None, shared_bytes: int
) -> Iterator[Row]:
    """A row for each op, shape and backend, in the precision that is set."""
    for op in registry.FUSED_OPS:
        if op in ("mixed_op", "relu_pointwise"):
            continue  # of DARTS cells, which these searches have none of; on a GPU they are PyTorch's ops
        for channels, size in scale.stages:
            images = max(1, scale.images // 8) if op == "masked_cell" else scale.images
            args = placed(arguments(op, channels, images, size), device, DTYPES[precision])
            for backend in (b.name for b in registry.BACKENDS if b.name != "reference"):
                row = {
                    "op": op,
                    "backend": backend,
                    "precision": precision,
                    "channels": channels,
                    "size": size,
                }
                call = call_of(op, args, backend)
                try:
                    error = error_of(op, args, call())
                except vpdarts_fast.UserError:
                    continue  # not served
                row |= {"error": error, "correct": error <= TOLERANCES[precision]}
                if row["correct"]:
                    tally = None
                    if backend in COUNTABLE:
                        tally = counted(partial(call_again, op, backend), args, shared_bytes)
                    row |= result(measure(call, device, scale.rounds), tally, roofline)
                yield row


def state_of(scale: Scale, device: torch.device, fused: bool) -> SearchState:
    """A search's beginning; skip connections have no weight, so that their dropout changes no result."""
    state = SearchState(scale.config.replaced(fused=fused), 10, device)
    with torch.no_grad():
        state.alpha[:, 1] = 0
    return state


def batch_of(scale: Scale, device: torch.device, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(images, 3, scale.size, scale.size, generator=generator)
    return inputs.to(device), torch.randint(10, (images,), generator=generator).to(device)


def setting_of(scale: Scale, images: int, name: str) -> Setting:
    return Setting(scale.config, images, scale.size, 10, torch.float32, shared_bytes_of(name))


def training_stage(device: torch.device, scale: Scale, name: str) -> Iterator[Row]:
    """A step of each phase, plain and fused, in float32."""
    batch = batch_of(scale, device, scale.config.optimisers.batch_size)
    losses: dict[tuple[str, bool], float] = {}
    for fused in (False, True):
        state = state_of(scale, device, fused)
        tallies = training_steps(setting_of(scale, scale.config.optimisers.batch_size, name), fused)

        def weights(state: SearchState = state) -> Any:
            return weights_step(
                state.supernet,
                state.alpha,
                batch,
                state.weights_optimizer,
                scale.config.optimisers.gradient_clip,
            )

        def alpha(state: SearchState = state) -> Any:
            return alpha_step(state.supernet, state.alpha, state.alive, batch, state.alpha_optimizer)

        phases = (("weights", weights, tallies[0]), ("alpha", alpha, tallies[1]))
        for phase, step, _ in phases:  # before any is timed: after many steps rounding has grown
            losses[phase, fused] = float(step()[0])
        for phase, step, tally in phases:
            error = abs(losses[phase, fused] / losses[phase, False] - 1)
            row = {"phase": phase, "fused": fused, "error": error, "correct": error < 1e-3}
            if row["correct"]:
                row |= result(measure(step, device, scale.rounds), tally, roofline_of(name, "fp32"))
            yield row


def leave_one_out_stage(device: torch.device, scale: Scale, name: str) -> Iterator[Row]:
    """An evaluation of two batches, plain and fused, in float32."""
    batches = [batch_of(scale, device, scale.images, seed) for seed in (1, 2)]
    expected: Tensor | None = None
    for fused in (False, True):
        state = state_of(scale, device, fused)

        def evaluate(state: SearchState = state, fused: bool = fused) -> vpdarts_fast.LeaveOneOut:
            return leave_one_out(state.supernet, batches, state.alpha, batched=fused)

        loss = evaluate().loss
        expected = loss if expected is None else expected
        error = float(((loss - expected) / expected).abs().max())
        row = {"fused": fused, "images": 2 * scale.images, "error": error, "correct": error < 1e-3}
        if row["correct"]:
            config = scale.config.replaced(evaluation_batch_size=scale.images, validation_proportion=1.0)
            tally = evaluation(setting_of(replace(scale, config=config), 2 * scale.images, name), fused)
            rounds = max(1, scale.rounds // 5)
            row |= result(measure(evaluate, device, rounds), tally, roofline_of(name, "fp32"))
        yield row


RowsOf = Callable[[torch.device, Scale, str], Iterator[Row]]
"""Gives the rows of a device, at a scale; the last argument is the device's name."""

STAGES: Mapping[str, RowsOf] = {
    **{f"ops-{precision}": partial(ops_stage, precision) for precision in PRECISIONS},
    "training": training_stage,
    "leave-one-out": leave_one_out_stage,
}
"""Those that measure; "contract" before them runs tests."""


def facts(device: torch.device) -> dict[str, Any]:
    """What the numbers are of."""
    found: dict[str, Any] = {
        "device": str(device),
        "name": platform.processor() or platform.machine(),
        "versions": {
            "vpdarts_fast": native.build_info()["version"] if native.available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "backends": {b.name: b.missing or "there" for b in registry.BACKENDS},
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
        smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory": properties.total_memory,
            "nvidia_smi": smi,
        }
    return found


def finished(command: Sequence[str], limit: int) -> dict[str, Any]:
    """How a command ended, within the limit."""
    started = time.perf_counter()
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        passed, output = run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    except subprocess.TimeoutExpired:
        passed, output = False, f"more than {limit} seconds"
    return {"passed": passed, "seconds": time.perf_counter() - started, "output": output}


def run_stage(stage: str, device: torch.device, folder: Path, limit: int) -> bool:
    """Runs a stage in a process of its own; whether everything in it is right."""
    file = folder / f"{stage}.json"
    report: dict[str, Any] = {"stage": stage, "facts": facts(device), "passed": False, "rows": []}
    write(file, report)
    command = [sys.executable, __file__, "--device", str(device), "--rows-of", stage, "--out", str(folder)]
    if stage == "contract":
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "tests/gpu/test_cuda.py",
        ]
    ended = finished(command, limit)
    report = {**json.loads(file.read_text()), **ended}
    write(file, report)
    print(f"{stage}: {verdict(report)}", flush=True)
    return verdict(report).startswith("right")


def write_rows(stage: str, device: torch.device, scale: Scale, file: Path) -> None:
    """Measures, and writes the rows into the stage's file after each."""
    report = json.loads(file.read_text())
    with computing_in("fp32", device):
        for row in STAGES[stage](device, scale, report["facts"]["name"]):
            report["rows"].append(row)
            write(file, report)


def write(file: Path, report: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(report, indent=1) + "\n").encode())


def verdict(report: Mapping[str, Any]) -> str:
    """Of a stage, with how long it took."""
    wrong = sum(not row["correct"] for row in report["rows"])
    said = f"{wrong} WRONG" if wrong else "right" if report["passed"] else "FAILED"
    return f"{said}, {report['seconds']:.0f} s"


def main(given: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the reports, one a stage")
    parser.add_argument("--stage", action="append", choices=LIMITS, help="only this one; may be repeated")
    parser.add_argument("--rows-of", choices=STAGES, help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args(given)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device; this measures on a GPU", file=sys.stderr)
        return 2
    if options.rows_of is not None:
        write_rows(options.rows_of, device, PAPER, options.out / f"{options.rows_of}.json")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    stages = options.stage or list(LIMITS)
    limits = {stage: LIMIT_ALONE if len(stages) == 1 else LIMITS[stage] for stage in stages}
    right = [run_stage(stage, device, options.out, limit) for stage, limit in limits.items()]
    print(f"written: {options.out}/*.json")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
