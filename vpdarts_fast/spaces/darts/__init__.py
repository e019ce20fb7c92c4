"""The DARTS space: genotypes, supernets, networks of found cells, and RobustDARTS' four smaller spaces."""

from vpdarts_fast.spaces.darts.autodl import AutodlSupernet
from vpdarts_fast.spaces.darts.genotype import DARTS_OPS, Genotype
from vpdarts_fast.spaces.darts.network import DartsNetwork
from vpdarts_fast.spaces.darts.robust import DartsS1, DartsS2, DartsS3, DartsS4
from vpdarts_fast.spaces.darts.space import Darts
from vpdarts_fast.spaces.darts.supernet import DartsSupernet

__all__ = [
    "DARTS_OPS",
    "AutodlSupernet",
    "Darts",
    "DartsNetwork",
    "DartsS1",
    "DartsS2",
    "DartsS3",
    "DartsS4",
    "DartsSupernet",
    "Genotype",
]
