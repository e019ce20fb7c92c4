"""`python -m vpdarts_fast.analysis.cost_model`: what a search costs a GPU, modelled without one."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vpdarts_fast.analysis.cost.phases import Setting, evaluation, training_steps
from vpdarts_fast.analysis.cost.roofline import DTYPES, GPUS, Assumptions, Precision, Roofline
from vpdarts_fast.analysis.cost.work import Tally
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.checkpoint import write_atomically
from vpdarts_fast.search.config import PRESETS, Preset, flag

FILE_WIDTH = 110
"""Columns of the printed tables where there is no terminal."""

PHASES = ("weights step", "alpha step", "leave-one-out")

DATA = {"quick": (719, 16, 10), "cpu": (25_000, 32, 10), "paper": (25_000, 32, 10)}
"""Of a preset: images in each half, their height and width, classes."""

TARGETS = {"weights step": 20, "alpha step": 20, "leave-one-out": 30}
"""Times fewer launches than eager PyTorch."""

SEARCH_TARGET, PAPER_SEARCH = 600, 2.8 * 3600
"""Seconds of a whole search in the paper's setting: what is aimed at, and what the paper took (Table 1)."""

ASSUMED = (
    "launches: kernels and copies as PyTorch's sources start them, the fewest where they choose; a "
    "convolution or a product of matrices counts as one",
    "eager: the plain modules, NCHW, with PyTorch's own dropout, foreach optimisers and cuDNN's batch norm",
    "ours: the fused ops on CUDA kernels (masked_cell, where a block has room for it), Triton and cuDNN",
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

    gpu: Literal["a100", "h100"] = "h100"
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
            most = 1 if name.endswith("share") else math.inf
            if not 0 < value <= most:
                raise UserError(f"{flag(name)} must be above 0 and at most {most}; got {value}")


@dataclass(frozen=True)
class Counted:
    """The phases of a search.

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
        counts = (config.epochs * steps, config.pruning_epochs * steps, self.setting.evaluations)
        return dict(zip(PHASES, counts, strict=True))


def setting_of(preset: Preset, precision: Precision, shared_bytes: int) -> Setting:
    """A preset's search."""
    return Setting(PRESETS[preset], *DATA[preset], DTYPES[precision], shared_bytes)


def count(setting: Setting) -> Counted:
    """Runs every phase, plain and fused."""
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
            "fewer_launches": counted.eager[phase].launches / counted.ours[phase].launches,
            "times_in_a_search": times,
        }
        for phase, times in counted.times.items()
    }
    search = {
        who: {
            how: sum(phases[phase][who][how] * times for phase, times in counted.times.items())
            for how in ("launched_s", "graph_s")
        }
        for who in ("eager", "ours")
    }
    targets = {
        f"{phase}: {factor} x fewer launches": phases[phase]["fewer_launches"] >= factor
        for phase, factor in TARGETS.items()
    }
    if counted.setting.config.preset == "paper":
        targets[f"search under {SEARCH_TARGET / 60:.0f} minutes"] = search["ours"]["graph_s"] < SEARCH_TARGET
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
    """One phase of one side."""
    return {
        "launches": tally.launches,
        "host_waits": tally.reads,
        "bytes": tally.bytes,
        "flops": tally.flops,
        "busy_s": roofline.busy(tally),
        "launched_s": roofline.launched(tally),
        "graph_s": roofline.in_a_graph(tally),
        "launches_by_kernel": dict(tally.launches_by_kernel()),
    }


def show(content: dict[str, Any], console: Console) -> None:
    """The tables."""
    title = f"{content['gpu']['name']}, {content['precision']}, preset {content['preset']}"
    table = Table("", "launches", "host waits", "GB", "GFLOP", "launched", "in a graph", title=title)
    for phase, values in content["phases"].items():
        for who in ("eager", "ours"):
            some = values[who]
            table.add_row(
                f"{phase}, {who}",
                f"{some['launches']:,}",
                f"{some['host_waits']:,}",
                f"{some['bytes'] / 1e9:,.2f}",
                f"{some['flops'] / 1e9:,.0f}",
                *(_shown(some[how]) for how in ("launched_s", "graph_s")),
            )
        ratios = (
            values["eager"][how] / values["ours"][how] for how in ("bytes", "flops", "launched_s", "graph_s")
        )
        table.add_row(
            "  eager / ours",
            f"{values['fewer_launches']:.1f} x",
            "",
            *(f"{ratio:.1f} x" for ratio in ratios),
            end_section=True,
        )
    console.print(table)
    counts = ", ".join(f"{v['times_in_a_search']:,} x {phase}" for phase, v in content["phases"].items())
    console.print(f"whole search: {counts}")
    for who, times in content["search"].items():
        how = f"{_shown(times['launched_s'])} launched one by one, {_shown(times['graph_s'])} in CUDA graphs"
        console.print(f"  {who}: {how}")
    if content["preset"] == "paper":
        console.print(f"  the paper: {PAPER_SEARCH / 3600} hours, on a GPU that it does not name")
    console.print("targets")
    for target, met in content["targets"].items():
        console.print(f"  {'met   ' if met else 'MISSED'} {target}")
    for phase, values in content["phases"].items():
        most = list(values["ours"]["launches_by_kernel"].items())[:8]
        console.print(f"ours, {phase}: " + ", ".join(f"{n:,} {kernel}" for kernel, n in most) + ", ...")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        command = tyro.cli(Command, args=arguments, prog="python -m vpdarts_fast.analysis.cost_model")
        gpu = GPUS[command.gpu]
        counted = count(setting_of(command.preset, command.precision, gpu.shared_bytes))
        content = report(counted, Roofline(gpu, command.precision, command.assumptions))
        console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
        show(content, console)
        if command.json is not None:
            write_atomically(command.json, (json.dumps(content, indent=1) + "\n").encode())
            print(f"written: {command.json}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
