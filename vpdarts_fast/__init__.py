"""vpdarts_fast: a fast VP-DARTS, and its parts for other DARTS code."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vpdarts_fast.acceleration import AccelerationReport, accelerate, restore
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from vpdarts_fast.evaluation.perturbation import Perturbed
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.spaces.nas_bench_201 import Genotype, Supernet, build_network

if TYPE_CHECKING:
    from vpdarts_fast.search.call import SearchResult, search_cells

__version__ = "0.1.0"

__all__ = [
    "AccelerationReport",
    "Genotype",
    "LeaveOneOut",
    "Perturbed",
    "Racing",
    "SearchResult",
    "Supernet",
    "UserError",
    "accelerate",
    "build_network",
    "leave_one_out",
    "restore",
    "search_cells",
]

_LATER = {name: "vpdarts_fast.search.call" for name in ("SearchResult", "search_cells")}
"""Names that are imported when they are first asked for, and where from: a search needs much besides ops."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value
