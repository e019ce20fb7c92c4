"""NAS-Bench-201 (Dong and Yang, 2020): genotypes, the supernet, the networks of single cells."""

from vpdarts_fast.spaces.nas_bench_201.genotype import (
    EDGES,
    NUM_ARCHITECTURES,
    NUM_NODES,
    OPS,
    Genotype,
    all_genotypes,
)
from vpdarts_fast.spaces.nas_bench_201.space import NasBench201, OneCell
from vpdarts_fast.spaces.nas_bench_201.supernet import (
    DiscreteCell,
    DiscreteNetwork,
    Supernet,
    build_network,
    check_alpha,
    pixels_of_last_stage,
)

__all__ = [
    "EDGES",
    "NUM_ARCHITECTURES",
    "NUM_NODES",
    "OPS",
    "DiscreteCell",
    "DiscreteNetwork",
    "Genotype",
    "NasBench201",
    "OneCell",
    "Supernet",
    "all_genotypes",
    "build_network",
    "check_alpha",
    "pixels_of_last_stage",
]
