"""How long counted work takes a GPU, by its data sheet and printed assumptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vpdarts_fast.analysis.cost.work import Tally, Work
from vpdarts_fast.runtime.precision import Precision

DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}
"""Of activations and weights."""


@dataclass(frozen=True)
class GPU:
    """What NVIDIA's data sheet says of a GPU.

    Attributes:
        name: of the product.
        reported: what its driver calls it; other forms of the product (PCIe, NVL, less memory) are slower.
        bandwidth: bytes a second.
        peak: precision -> operations a second of a product, dense; fp32 has no tensor cores.
        shared_bytes: that a block may have.
    """

    name: str
    reported: str
    bandwidth: float
    peak: Mapping[Precision, float]
    shared_bytes: int


_HOPPER: Mapping[Precision, float] = {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12}
"""H100 and H200 have the same multiprocessors, as many of them and at the same clock."""

GPUS: Mapping[str, GPU] = {
    "a100": GPU(
        "A100 SXM 80 GB",
        "NVIDIA A100-SXM4-80GB",
        2.039e12,
        {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12},
        163 << 10,
    ),
    "h100": GPU("H100 SXM 80 GB", "NVIDIA H100 80GB HBM3", 3.35e12, _HOPPER, 227 << 10),
    "h200": GPU("H200 SXM 141 GB", "NVIDIA H200", 4.8e12, _HOPPER, 227 << 10),
}


def reported_gpu(name: str) -> GPU | None:
    """The data sheet of the GPU that the driver calls so, if it is among `GPUS`."""
    return next((gpu for gpu in GPUS.values() if gpu.reported == name), None)


@dataclass(frozen=True)
class Assumptions:
    """What the data sheet does not say."""

    bandwidth_share: float = 0.7
    """Of the memory's bandwidth, what a kernel reaches."""
    vector_share: float = 0.5
    """Of float32's peak, what a kernel reaches."""
    matrix_share: float = 0.5
    """Of the tensor cores' peak, what a product reaches."""
    kernel_us: float = 2.0
    """The shortest time a kernel takes, in microseconds."""
    launch_us: float = 5.0
    """What the host takes for each launch, in microseconds, while the device computes."""
    gap_us: float = 1.0
    """Between two kernels that are there to be run, in microseconds."""


@dataclass(frozen=True)
class Roofline:
    """Times on one GPU in one precision.

    A kernel takes as long as its bytes or its operations, whichever is longer, and never less than a minimum.
    """

    gpu: GPU
    precision: Precision
    assumptions: Assumptions

    def seconds(self, work: Work) -> float:
        """Seconds that the device takes for one call."""
        some = self.assumptions
        peak = self.gpu.peak["fp32"] * some.vector_share
        if work.unit == "matrix" and self.precision != "fp32":
            peak = self.gpu.peak[self.precision] * some.matrix_share
        return max(
            work.bytes / (self.gpu.bandwidth * some.bandwidth_share),
            work.flops / peak,
            work.launches * some.kernel_us * 1e-6,
        )

    def busy(self, tally: Tally) -> float:
        """Seconds that the device computes."""
        return sum(times * self.seconds(work) for work, times in tally.work.items())

    def close(self, tally: Tally) -> float:
        """Seconds where kernels follow each other as closely as they can."""
        return self.busy(tally) + tally.kernels * self.assumptions.gap_us * 1e-6

    def seconds_of(self, tally: Tally) -> float:
        """Seconds on the clock: the host launches while the device computes, and the slower one counts."""
        return max(self.close(tally), tally.launches * self.assumptions.launch_us * 1e-6)

    def one_by_one(self, tally: Tally) -> float:
        """Seconds on the clock as `seconds_of`, with every kernel launched by the host: no CUDA graphs."""
        return max(self.close(tally), tally.kernels * self.assumptions.launch_us * 1e-6)
