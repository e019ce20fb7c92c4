"""The settings of a training in groups, each a frozen dataclass: the only home of defaults.

The names of all settings, over all groups, are different: each is the flag of its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpdarts_fast.runtime.precision import Precision

TrainOn = Literal["all", "half"]
Anneal = Literal["epochs", "steps"]
BenchmarkData = Literal["auto", "cifar10", "cifar100", "imagenet16-120", "none"]
TrainLoss = Literal["cross-entropy", "label-smoothing", "class-weights", "focal"]


@dataclass(frozen=True)
class NetworkSettings:
    """The network that is built of the cell."""

    channels: int | None = None
    """C of the first cells. Default: as many as the paper of the space has."""
    depth: int | None = None
    """Cells; of each of three stages in NAS-Bench-201, in all in the DARTS space. Default: as the paper."""
    auxiliary_weight: float = 0.0
    """What the loss of an auxiliary head is multiplied with, in the DARTS space; 0: no such head."""
    drop_path: float = 0.0
    """Probability of dropping the output of an operation, in the DARTS space; it grows from 0 to this."""


@dataclass(frozen=True)
class TrainingSettings:
    """What the network is trained on, and how."""

    images: TrainOn = "all"
    """Train on all training images of the data set, or on half of them; the other half then validates."""
    split_seed: int = 0
    """Of the random halves of --images half, and of which images --max-images leaves; where a run of a search
    is given, that of the search."""
    epochs: int = 200
    """How often all of them are visited."""
    batch_size: int = 256
    """Images in a training step."""
    evaluation_batch_size: int = 256
    """Images in an evaluation batch, at most."""
    learning_rate: float = 0.1
    """Of SGD, at the start of a cosine schedule."""
    learning_rate_end: float = 0.0
    """What that schedule comes to."""
    anneal: Anneal = "epochs"
    """Follow the schedule once an epoch, as the published protocols do, or in every step."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = True
    """Nesterov's form of that momentum, or the plain one."""
    weight_decay: float = 5e-4
    """SGD's L2 penalty."""
    gradient_clip: float | None = None
    """Largest norm of the gradient. Default: any."""
    sync_batch_norm: bool = False
    """Of several processes: take the statistics of batch norms in training over the parts that all of them
    have of a batch, as one process would, rather than over each one's own."""
    loss: TrainLoss = "cross-entropy"
    """What is minimised: cross-entropy, with label-smoothing, with class-weights (rare classes weigh more) or
    focal (what is learned weighs less)."""
    label_smoothing: float = 0.1
    """Of label-smoothing: the share of the target that all classes have alike."""
    class_weight_power: float = 1.0
    """Of class-weights: a class weighs its inverse frequency to this power; at 1 all classes weigh alike."""
    focal_gamma: float = 2.0
    """Of focal: the power of one minus the probability of the right class."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then the network that is tested and exported; the
    weights themselves are evaluated beside it. Default: no average."""
    seed: int = 0
    """Of every random number."""


@dataclass(frozen=True)
class TrainExecutionSettings:
    """What the training runs on."""

    fused: bool = True
    """Train on the fused operations where they are faster; the same function. --no-fused: the modules."""
    precision: Precision = "fp32"
    """fp32 (exact), tf32 (CUDA: rounded in products) or bf16 (activations; parameters stay float32)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's. Beside busy programs use 1, or set OMP_WAIT_POLICY=passive."""


@dataclass(frozen=True)
class TrainReportingSettings:
    """What is reported besides the result."""

    benchmark_table: Path | None = None
    """Where a cell of NAS-Bench-201 is looked up (csv or csv.gz). Default: the package's table."""
    benchmark_data: BenchmarkData = "auto"
    """Which data set of NAS-Bench-201 the images are, so that its accuracy by the same protocol can stand
    beside ours; auto goes by --dataset."""
    onnx: bool = True
    """Export the network as ONNX too, which needs the extra `export`."""
