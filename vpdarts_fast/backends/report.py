"""Which backends serve a search, or could serve one on this machine, and why better ones do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.backends.registry import Backend, named, preferred, serving
from vpdarts_fast.errors import UserError

StageSize = tuple[int, int, int]
"""Channels, height and width of the cells of a stage."""


def probe(size: StageSize, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """What stands for the arguments of any op there: activations, and alphas, which are float32 or better."""
    x = torch.empty(1, 1, *size, dtype=dtype, device=device)
    return [x], [torch.empty(25, 6, 5, dtype=torch.promote_types(dtype, torch.float32), device=device)]


def report(
    phases: Mapping[str, Sequence[str]],
    stages: Sequence[StageSize],
    dtype: torch.dtype,
    device: torch.device,
    backend: str = "auto",
) -> str:
    """In one line, the backend of every op in every phase, and why better ones on that device do not serve.

    Args:
        phases: name -> the ops that it runs on.
        stages: where they run.
        dtype: of activations.
        device: of everything.
        backend: a name, which serves the ops that it has, or auto.

    Raises:
        UserError: an explicit choice has none of the ops, or cannot serve one that it has; with every reason.
    """
    ops = list(dict.fromkeys(op for phase in phases.values() for op in phase))
    if backend != "auto":
        _check_choice(backend, ops, stages, dtype, device)
    names: dict[str, list[str]] = {op: [] for op in ops}
    passed_over: list[str] = []
    for op in ops:
        for stage in stages:
            tensors, small = probe(stage, dtype, device)
            chosen = serving(op, tensors, preferred(op, backend), small)
            names[op].append(chosen.name)
            if backend == "auto":
                passed_over += _passed_over(chosen, op, tensors, small, device)
    said = ", ".join(f"{phase} {_by_op(some, names, stages)}" for phase, some in phases.items())
    return said + (f" ({'; '.join(dict.fromkeys(passed_over))})" if passed_over else "")


def _check_choice(
    name: str, ops: Sequence[str], stages: Sequence[StageSize], dtype: torch.dtype, device: torch.device
) -> None:
    (backend,) = named(name)
    asked = [op for op in ops if preferred(op, name) == name]
    if not asked:
        raise UserError(f"backend {name} has none of the operations of this search: {', '.join(ops)}")
    refused: dict[str, list[str]] = {}  # by reason, what
    for op in asked:
        by_stage = [backend.unsupported(op, *probe(stage, dtype, device)) for stage in stages]
        for reason in dict.fromkeys(chain(*by_stage)):
            where = [f"{stage[0]}" for stage, some in zip(stages, by_stage, strict=True) if reason in some]
            everywhere = len(where) == len(stages)
            refused.setdefault(reason, []).append(op if everywhere else f"{op} (C={', '.join(where)})")
    if refused:
        lines = [f"{', '.join(calls)}: {reason}" for reason, calls in refused.items()]
        raise UserError("\n  ".join([f"backend {name} cannot serve this search", *lines]))


def _passed_over(
    chosen: Backend, op: str, tensors: list[Tensor], small: list[Tensor], device: torch.device
) -> list[str]:
    """Why backends before `chosen` do not serve a call that they are there for, in a sentence each."""
    better = registry.BACKENDS[: registry.BACKENDS.index(chosen)]
    return [
        f"not {b.name}: {b.unsupported(op, tensors, small)[0].partition('. ')[0]}"
        for b in better
        if (not b.device_types or device.type in b.device_types) and (b.missing or op in b.implementations)
    ]


def _by_op(ops: Sequence[str], names: Mapping[str, Sequence[str]], stages: Sequence[StageSize]) -> str:
    """One name if all ops are served by it everywhere."""
    if len({name for op in ops for name in names[op]}) == 1:
        return names[ops[0]][0]
    return ", ".join(f"{op} {_by_stage(names[op], stages)}" for op in ops)


def _by_stage(names: Sequence[str], stages: Sequence[StageSize]) -> str:
    channels: dict[str, list[str]] = {}
    for name, stage in zip(names, stages, strict=True):
        channels.setdefault(name, []).append(str(stage[0]))
    if len(channels) == 1:
        return names[0]
    return " ".join(f"{name} (C={', '.join(some)})" for name, some in channels.items())
