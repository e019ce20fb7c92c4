"""What a search runs on, as far as it changes the last bits of what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vpdarts_fast import native
from vpdarts_fast.runs.values import mapping, whole

NAMES = {
    "pytorch": "PyTorch",
    "device": "device",
    "threads": "threads",
    "isa": "instruction set of the native kernels",
    "pytorch_isa": "instruction set of PyTorch",
    "backend": "backend",
}
"""What is recorded, and its name for people."""


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """What this process computes on: the entry `environment` of checkpoints and metrics.jsonl."""
    is_cuda = device.type == "cuda"
    return {
        "pytorch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "isa": native.cpu_isa() if native.available() else "none",
        "pytorch_isa": torch.backends.cpu.get_cpu_capability(),
        "backend": backend,
    }


def checked(saved: object) -> dict[str, Any] | None:
    """A recorded environment, None where none was recorded; raises `ValueError` for anything else."""
    if saved is None:
        return None
    values = dict(mapping(saved, "environment"))
    whole(values.get("threads"), "environment, threads,", 1, 1 << 20)
    for name in NAMES.keys() - {"threads"}:
        if not isinstance(values.get(name), str):
            raise ValueError(f"environment, {name}, must be text")
    return values


def change(saved: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """A line on what differs from what the run was computed on so far; None if nothing does."""
    if saved is None:
        return "what this run was computed on before is not recorded: its last bits may change from here on"
    changed = [
        f"{NAMES[name]} {str(saved[name])[:60]} -> {now[name]}" for name in NAMES if saved[name] != now[name]
    ]
    if not changed:
        return None
    return "not what this run was computed on before, its last bits may change from here on: " + ", ".join(
        changed
    )
