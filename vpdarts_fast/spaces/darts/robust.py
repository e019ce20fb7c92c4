"""The four smaller spaces of RobustDARTS (Zela et al., 2020), in which DARTS fails in different ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vpdarts_fast.spaces.darts.genotype import EDGES
from vpdarts_fast.spaces.darts.space import Darts
from vpdarts_fast.spaces.darts.supernet import OpsOfEdges

_SKIP, _SEP_3 = "skip_connect", "sep_conv_3x3"
_DIL_3, _DIL_5 = "dil_conv_3x3", "dil_conv_5x5"
_MAX, _AVG = "max_pool_3x3", "avg_pool_3x3"

S1_NORMAL: OpsOfEdges = (
    *((_SKIP, _DIL_3), (_SKIP, _DIL_5)),  # into node 2
    *((_SKIP, _DIL_5), (_SKIP, _SEP_3), (_SKIP, _DIL_3)),
    *((_MAX, _SKIP), (_SKIP, _SEP_3), (_SKIP, _SEP_3), (_SKIP, _DIL_3)),
    *((_SKIP, _SEP_3), (_MAX, _SKIP), (_SKIP, _DIL_3), (_DIL_3, _DIL_5), (_DIL_3, _DIL_5)),
)
"""The two strongest operations of each edge of a DARTS search, in the order of `EDGES`."""

S1_REDUCTION: OpsOfEdges = (
    *((_MAX, _AVG), (_MAX, _DIL_3)),  # into node 2
    *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL_5)),
    *((_MAX, _AVG), (_MAX, _SEP_3), (_SKIP, _DIL_3), (_SKIP, _DIL_5)),
    *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL_5), (_SKIP, _DIL_5), (_SKIP, _DIL_5)),
)

_S2: OpsOfEdges = ((_SKIP, _SEP_3),) * len(EDGES)
_S3: OpsOfEdges = (("none", _SKIP, _SEP_3),) * len(EDGES)
_S4: OpsOfEdges = (("noise", _SEP_3),) * len(EDGES)


@dataclass(frozen=True)
class DartsS1(Darts):
    """Two operations an edge, others on every edge: the two strongest of each in a DARTS search."""

    name: ClassVar[str] = "darts-s1"
    normal_ops: ClassVar[OpsOfEdges] = S1_NORMAL
    reduction_ops: ClassVar[OpsOfEdges] = S1_REDUCTION


@dataclass(frozen=True)
class DartsS2(Darts):
    """Skip connection and 3x3 separable convolution on every edge."""

    name: ClassVar[str] = "darts-s2"
    normal_ops: ClassVar[OpsOfEdges] = _S2
    reduction_ops: ClassVar[OpsOfEdges] = _S2


@dataclass(frozen=True)
class DartsS3(Darts):
    """Skip connection, 3x3 separable convolution and `none` on every edge."""

    name: ClassVar[str] = "darts-s3"
    normal_ops: ClassVar[OpsOfEdges] = _S3
    reduction_ops: ClassVar[OpsOfEdges] = _S3


@dataclass(frozen=True)
class DartsS4(Darts):
    """3x3 separable convolution and noise on every edge; the noise may be chosen."""

    name: ClassVar[str] = "darts-s4"
    normal_ops: ClassVar[OpsOfEdges] = _S4
    reduction_ops: ClassVar[OpsOfEdges] = _S4
