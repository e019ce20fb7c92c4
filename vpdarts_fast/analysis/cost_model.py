"""`python -m vpdarts_fast.analysis.cost_model`: what a search costs a GPU, modelled without one."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vpdarts_fast.analysis.cost.phases import Setting, evaluation, training_steps
from vpdarts_fast.analysis.cost.roofline import DTYPES, GPUS, Assumptions, Roofline
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.bounds import check_bound
from vpdarts_fast.command_line import command, table_console
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runtime.precision import Precision
from vpdarts_fast.search.config import PRESETS, Preset, flag

FILE_WIDTH = 110
"""Columns of the printed tables where there is no terminal."""

PHASES = ("weights step", "alpha step", "leave-one-out")

DATA = {"quick": (719, 16, 10), "cpu": (25_000, 32, 10), "paper": (25_000, 32, 10)}
"""Of a preset: images in each half, their height and width, classes."""

TARGETS = {"weights step": 20, "alpha step": 20, "leave-one-out": 30}
"""Times fewer launches than eager PyTorch; kernels and, where CUDA graphs start many at once, launches."""

SEARCH_TARGET, PAPER_SEARCH = 600, 2.8 * 3600
"""Seconds of a whole search in the paper's setting: what is aimed at, and what the paper took (Table 1)."""

ASSUMED = (
    "kernels: with copies, as PyTorch's sources start them, the fewest where they choose; a convolution or a "
    "product of matrices counts as one",
    "launches: by the host; of a kernel, or of a CUDA graph as a whole",
    "eager: the plain modules, NCHW, with PyTorch's own dropout, fused optimisers and cuDNN's batch norm, "
    "launched one by one",
    "ours: the fused ops on CUDA kernels (masked_cell, where a block has room for it), Triton and cuDNN, in "
    "CUDA graphs once they are recorded",
    "bytes: every tensor that a kernel takes is read or written once in device memory; no L2 cache between "
    "kernels",
    "products: in the precision asked for, for both; bf16 means activations and weights in bfloat16",
    "every batch is a full one; alphas are all different from 0, so that no removal can be skipped",
    "batches lie on the device; augmentation, logging and checkpoints take no time",
)


@dataclass(frozen=True)
class Command:
    """Counts the kernels of one training step and one leave-one-out evaluation, and models their times.

    The real host code runs on tensors without data: eager PyTorch's modules and ours. Nothing is computed,
    and no GPU is needed.
    """

    gpu: Literal["a100", "h100", "h200"] = "h100"
    """Whose data sheet."""
    preset: Preset = "paper"
    """The search: paper, cpu (N=1) or quick (digits)."""
    precision: Precision = "fp32"
    """fp32, tf32 or bf16."""
    assumptions: tyro.conf.OmitArgPrefixes[Assumptions] = field(default_factory=Assumptions)
    json: Path | None = None
    """Write everything into this file too."""

    def __post_init__(self) -> None:
        for name, value in vars(self.assumptions).items():
            check_bound(name, value, flag(name))
        if self.json is not None and not self.json.parent.is_dir():
            raise UserError(f"--json {self.json}: there is no folder {self.json.parent}")


@dataclass(frozen=True)
class Counted:
    """What the phases of a search cost, in eager PyTorch and in ours.

    Attributes:
        setting: of the search.
        eager, ours: phase -> what it costs.
    """

    setting: Setting
    eager: Mapping[str, Tally]
    ours: Mapping[str, Tally]

    @property
    def times(self) -> dict[str, int]:
        """How often a search runs each phase."""
        config, steps = self.setting.config, self.setting.steps
        counts = (config.epochs * steps, config.alpha_epochs * steps, self.setting.evaluations)
        return dict(zip(PHASES, counts, strict=True))


def setting_of(preset: Preset, precision: Precision, shared_bytes: int) -> Setting:
    """The search of a preset, with the images and classes of its data set."""
    return Setting(PRESETS[preset], *DATA[preset], DTYPES[precision], shared_bytes)


def count(setting: Setting) -> Counted:
    """Runs every phase on tensors without data, plain and fused, and counts what it starts."""
    found = [
        dict(zip(PHASES, (*training_steps(setting, fused), evaluation(setting, fused)), strict=True))
        for fused in (False, True)
    ]
    return Counted(setting, *found)


def report(counted: Counted, roofline: Roofline) -> dict[str, Any]:
    """Everything as plain values: phases, the whole search, targets, assumptions."""
    phases: dict[str, dict[str, Any]] = {
        phase: {
            "eager": side(counted.eager[phase], roofline),
            "ours": side(counted.ours[phase], roofline),
            "fewer": {
                unit: getattr(counted.eager[phase], unit) / getattr(counted.ours[phase], unit)
                for unit in ("launches", "kernels")
            },
            "times_in_a_search": times,
        }
        for phase, times in counted.times.items()
    }
    search = {
        who: {
            how: sum(phases[phase][who][how] * times for phase, times in counted.times.items())
            for how in ("seconds", "one_by_one_s")
        }
        for who in ("eager", "ours")
    }
    targets = {
        f"{phase}: {factor} x fewer {unit}": phases[phase]["fewer"][unit] >= factor
        for unit in ("launches", "kernels")
        for phase, factor in TARGETS.items()
    }
    if counted.setting.config.preset == "paper":
        targets[f"search under {SEARCH_TARGET / 60:.0f} minutes"] = search["ours"]["seconds"] < SEARCH_TARGET
    return {
        "gpu": dataclasses.asdict(roofline.gpu),
        "precision": roofline.precision,
        "preset": counted.setting.config.preset,
        "phases": phases,
        "search": search,
        "targets": targets,
        "assumptions": {**dataclasses.asdict(roofline.assumptions), "counting": list(ASSUMED)},
    }


def side(tally: Tally, roofline: Roofline) -> dict[str, Any]:
    """The counts and times of one phase, of one side, as plain values."""
    return {
        "launches": tally.launches,
        "kernels": tally.kernels,
        "host_waits": tally.reads,
        "bytes": tally.bytes,
        "flops": tally.flops,
        "busy_s": roofline.busy(tally),
        "seconds": roofline.seconds_of(tally),
        "one_by_one_s": roofline.one_by_one(tally),
        "by_kernel": dict(tally.by_kernel()),
    }


def show(content: dict[str, Any], console: Console) -> None:
    """Prints what `report` returns as tables."""
    title = f"{content['gpu']['name']}, {content['precision']}, preset {content['preset']}"
    heads = ("launches", "kernels", "waits", "GB", "GFLOP", "busy", "time")
    table = Table("", *heads, title=title)
    for phase, values in content["phases"].items():
        for who in ("eager", "ours"):
            some = values[who]
            counts = (f"{some[name]:,}" for name in ("launches", "kernels", "host_waits"))
            sizes = f"{some['bytes'] / 1e9:,.2f}", f"{some['flops'] / 1e9:,.0f}"
            table.add_row(f"{phase}, {who}", *counts, *sizes, _shown(some["busy_s"]), _shown(some["seconds"]))
        fewer = (f"{values['fewer'][unit]:.1f} x" for unit in ("launches", "kernels"))
        ratios = (
            values["eager"][how] / values["ours"][how] for how in ("bytes", "flops", "busy_s", "seconds")
        )
        table.add_row("  eager / ours", *fewer, "", *(f"{r:.1f} x" for r in ratios), end_section=True)
    console.print(table)
    counted = ", ".join(f"{v['times_in_a_search']:,} x {phase}" for phase, v in content["phases"].items())
    console.print(f"whole search: {counted}")
    eager, ours = (content["search"][who] for who in ("eager", "ours"))
    console.print(f"  eager: {_shown(eager['seconds'])}")
    console.print(f"  ours: {_shown(ours['seconds'])}; without CUDA graphs {_shown(ours['one_by_one_s'])}")
    if content["preset"] == "paper":
        console.print(f"  the paper: {PAPER_SEARCH / 3600} hours, on a GPU that it does not name")
    console.print("targets")
    for target, met in content["targets"].items():
        console.print(f"  {'met   ' if met else 'MISSED'} {target}")
    for phase, values in content["phases"].items():
        most = list(values["ours"]["by_kernel"].items())[:8]
        console.print(
            f"kernels of ours, {phase}: " + ", ".join(f"{n:,} {kernel}" for kernel, n in most) + ", ..."
        )
    console.print("assumptions")
    numbers = {name: value for name, value in content["assumptions"].items() if name != "counting"}
    console.print("  " + ", ".join(f"{name} {value}" for name, value in numbers.items()))
    gpu, precision = content["gpu"], content["precision"]
    console.print(
        f"  data sheet: {gpu['bandwidth'] / 1e12} TB/s, "
        f"{gpu['peak']['fp32'] / 1e12} TFLOP/s float32, {gpu['peak'][precision] / 1e12} {precision}"
    )
    for line in content["assumptions"]["counting"]:
        console.print(f"  {line}")


def _shown(seconds: float) -> str:
    if seconds >= 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status; None takes the arguments of the process."""
    request = tyro.cli(Command, args=arguments, prog="python -m vpdarts_fast.analysis.cost_model")
    gpu = GPUS[request.gpu]
    counted = count(setting_of(request.preset, request.precision, gpu.shared_bytes))
    content = report(counted, Roofline(gpu, request.precision, request.assumptions))
    console = table_console(FILE_WIDTH)
    show(content, console)
    if request.json is not None:
        write_atomically(request.json, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written: {request.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
