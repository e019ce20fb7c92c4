"""`python -m vpdarts_fast.backends`: which backend can serve which op on this machine, and why not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from vpdarts_fast.backends.registry import BACKENDS, FUSED_OPS
from vpdarts_fast.backends.report import probe
from vpdarts_fast.command_line import command

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
STAGE = 16, 32, 32  # the paper's first


def table(device: torch.device) -> list[str]:
    """A line an op, a column a backend: the precisions it serves, * where auto takes it; then the reasons."""
    cells: dict[tuple[str, str], list[str]] = {(op, b.name): [] for op in FUSED_OPS for b in BACKENDS}
    reasons: dict[str, None] = {}
    for op in FUSED_OPS:
        for precision, dtype in PRECISIONS.items():
            taken = False
            for b in BACKENDS:
                complaints = b.unsupported(op, *probe(STAGE, dtype, device))
                reasons |= {f"{b.name}: {complaint}": None for complaint in complaints}
                if not complaints:
                    cells[op, b.name].append(precision if taken else f"{precision}*")
                    taken = True
    rows = [[f"on {device}", *(b.name for b in BACKENDS)]]
    rows += [[op, *(" ".join(cells[op, b.name]) or "-" for b in BACKENDS)] for op in FUSED_OPS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*lines, "", *reasons, ""]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of the CPU, and of the GPU where there is one; returns the exit status, 0."""
    argparse.ArgumentParser(
        prog="python -m vpdarts_fast.backends",
        description="Shows the backends of every op on this machine. * is what auto takes. "
        "TF32 is served by what serves fp32 on CUDA.",
    ).parse_args(arguments)
    for kind in ("cpu", "cuda"):
        if kind == "cpu" or torch.cuda.is_available():
            print("\n".join(table(torch.device(kind))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
