"""vpdarts_fast: a fast VP-DARTS, and its parts for other DARTS code."""

from vpdarts_fast.acceleration import AccelerationReport, accelerate, restore
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from vpdarts_fast.evaluation.perturbation import Perturbed
from vpdarts_fast.spaces.nas_bench_201 import Genotype, Supernet, build_network

__version__ = "0.1.0"

__all__ = [
    "AccelerationReport",
    "Genotype",
    "LeaveOneOut",
    "Perturbed",
    "Supernet",
    "UserError",
    "accelerate",
    "build_network",
    "leave_one_out",
    "restore",
]
