"""The settings of a search in groups, each a frozen dataclass: the only home of defaults.

The names of all settings, over all groups, are different: each is the flag of its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.data import DATASETS
from vpdarts_fast.data.options import Augment
from vpdarts_fast.data.protocol import Split
from vpdarts_fast.evaluation.objective import Metric
from vpdarts_fast.evaluation.validation import BatchNorm, Removal
from vpdarts_fast.runtime.precision import Precision
from vpdarts_fast.search.methods.alpha_rules import AlphaRule, FirstOrder
from vpdarts_fast.search.methods.criteria import AccuracyCriterion, Criterion
from vpdarts_fast.search.methods.pruning import Pruning, SoftPruning
from vpdarts_fast.search.methods.regularisers import NoRegulariser, Regulariser
from vpdarts_fast.search.methods.relaxations import Raw, Relaxation
from vpdarts_fast.search.methods.schedules import Schedule, WarmUpAndPruning
from vpdarts_fast.search.methods.stopping import NoStopping, Stopping
from vpdarts_fast.search.methods.variations import NoVariation, Variation
from vpdarts_fast.spaces.costs import COSTS, Cost

if TYPE_CHECKING:
    BackendName = str
else:  # backends are only known at run time
    BackendName = Literal[("auto", *(backend.name for backend in BACKENDS))]

DATASET_NAMES = "{" + ",".join((*DATASETS, "hf:NAME", "torchvision:NAME")) + "}"

Evaluation = Literal["full", "racing"]
LossName = Literal["cross-entropy", "label-smoothing", "class-weights", "focal", "given"]
StepOrder = Literal["weights-first", "alpha-first"]
Lineage = Literal["recipe", "quark0", "autodl"]


@dataclass(frozen=True)
class SearchSettings:
    """How the search evaluates and by what it decides at the end."""

    images_per_epoch: int | None = None
    """Visit only so many images of each half in an epoch, drawn anew for every one. Default: all."""
    validation_proportion: float = 0.5
    """Share of the validation images drawn for each evaluation."""
    evaluation: Evaluation = "full"
    """full (every op is left out on all of these images) or racing (an op leaves the evaluation once it
    cannot be its edge's most important one any more)."""
    race_confidence: float = 0.95
    """Of racing: how surely each edge's choice is that of a full evaluation."""
    batch_norm: BatchNorm = "variant"
    """Batch norm's statistics during leave-one-out evaluation."""
    removal: Removal = "zero"
    """Leaving an op out: zero (its alpha is 0, no other changes) or renormalised (the others of its edge are
    scaled up, so that the edge carries as much as before)."""
    committee: int = 1
    """Supernets that are trained side by side. Ops are ranked by their mean importance to all of them, and
    all are pruned alike; it takes as many times as long."""
    finalists: int = 0
    """Cells that are trained from scratch for a short time at the end, the found one among them; a clearly
    better one is taken instead. 0: none, the search alone decides."""
    finalist_steps: int = 100
    """Training steps of the first rung; each rung is four times as long as the one before."""
    finalist_budget: int = 12_000
    """Training steps of all finalists together, at most."""
    finalist_margin: float = 5.0
    """Points by which a clearly better cell has to lead after 400 steps; after n times those an n-th."""
    eigenvalue: bool = False
    """Measure in every epoch the largest eigenvalue of the Hessian of the validation loss by alpha."""
    metric: Metric = "accuracy"
    """What leave-one-out and finalists call accuracy: accuracy (the share of images), balanced-accuracy (the
    mean over the classes of each one's share) or macro-f1 (the mean over the classes of F1)."""
    seed: Annotated[int, tyro.conf.Suppress] = 0
    """Of every random number; --seeds sets it."""


@dataclass(frozen=True)
class MethodSettings:
    """The parts that the method is composed of, and where alpha starts."""

    recipe: str = "vp-darts"
    """The method by its name: where the defaults of its parts and their settings come from."""
    relaxation: Relaxation = field(default_factory=Raw)
    variation: Variation = field(default_factory=NoVariation)
    schedule: Schedule = field(default_factory=WarmUpAndPruning)
    alpha_rule: AlphaRule = field(default_factory=FirstOrder)
    regulariser: Regulariser = field(default_factory=NoRegulariser)
    criterion: Criterion = field(default_factory=AccuracyCriterion)
    pruning: Pruning = field(default_factory=SoftPruning)
    stopping: Stopping = field(default_factory=NoStopping)
    alpha_start: float | None = None
    """Where every alpha starts. Default: 1/O, what a softmax of equal alphas gives."""
    alpha_noise: float = 0.0
    """Standard deviation of normal noise around that start, drawn for each alpha."""
    step_order: StepOrder = "weights-first"
    """Which of the two steps comes first, every time, in an epoch that has both."""
    alpha_every: int = 1
    """Steps of the weights for each step of alpha."""
    lineage: Lineage = "recipe"
    """Whose settings of the supernet's training: the recipe's own, those of quark0/darts and what descends
    from it, or those of AutoDL-Projects."""

    @property
    def capturable(self) -> bool:
        """Whether training steps can be recorded as CUDA graphs."""
        return self.alpha_rule.capturable and self.variation.capturable


@dataclass(frozen=True)
class OptimiserSettings:
    """How the weights (SGD) and alpha (Adam) are optimised."""

    loss: LossName = "cross-entropy"
    """What all training minimises, and leave-one-out measures: cross-entropy, with label-smoothing, with
    class-weights (rare classes weigh more) or focal (what is learned weighs less); given is that of a call
    from Python, and trains only."""
    label_smoothing: float = 0.1
    """Of label-smoothing: the share of the target that all classes have alike."""
    class_weight_power: float = 1.0
    """Of class-weights: a class weighs its inverse frequency to this power; at 1 all classes weigh alike."""
    focal_gamma: float = 2.0
    """Of focal: the power of one minus the probability of the right class."""
    batch_size: int = 64
    """Images in a training step."""
    evaluation_batch_size: int = 256
    """Images in an evaluation batch, at most."""
    learning_rate: float = 0.025
    """Of the weights (SGD), at the start of a cosine schedule."""
    learning_rate_end: float = 0.001
    """Of the weights, at its end."""
    momentum: float = 0.9
    """Of the weights' optimiser."""
    nesterov: bool = True
    """Nesterov's form of that momentum, or the plain one."""
    weight_decay: float = 5e-4
    """Of the weights (SGD's L2 penalty)."""
    gradient_clip: float = 5.0
    """Largest norm of the weights' gradient."""
    sync_batch_norm: bool = False
    """Of several processes: take the statistics of batch norms in training over the parts that all of them
    have of a batch, as one process would, rather than over each one's own."""
    alpha_learning_rate: float = 3e-4
    """Of alpha (Adam)."""
    alpha_rate_scaling: bool = False
    """Scale alpha's learning rate with the number of its steps, so that rate times steps is that of the
    paper's search: the fewer steps than its 11,730, the higher the rate."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's betas for alpha."""
    alpha_weight_decay: float = 1e-3
    """Of alpha (Adam's L2 penalty)."""


@dataclass(frozen=True)
class ImageSettings:
    """Which images are used, and where they lie."""

    dataset: Annotated[str, tyro.conf.arg(metavar=DATASET_NAMES)] = "cifar10"
    """digits is embedded; the others read files from --data: folder a folder or .zip archive of class folders
    (with train, val and test, or without), hf:NAME and torchvision:NAME data sets of Hugging Face's datasets
    and of torchvision. given are those of a call from Python."""
    data: Path | None = None
    """Folder of the data set, the .npz file for --dataset npz, or the archive for --dataset folder. Default:
    ./data, and of hf:NAME where datasets has its own."""
    download: bool = False
    """Fetch the data set if it is not there: cifar10, cifar100, hf:NAME or torchvision:NAME."""
    image_size: int | None = None
    """Height and width that images from files of any size are brought to, 16 to 224. Default: 32."""
    cache: Path | None = None
    """Folder for decoded images. Default: vpdarts_fast in $XDG_CACHE_HOME or ~/.cache."""
    skip_corrupt: bool = False
    """Leave out image files that cannot be decoded, rather than refuse the data set."""
    augment: Augment = "standard"
    """What training images go through: standard (what suits the data set), none, crop-flip (padded by an
    eighth, cropped, mirrored) or autoaugment (crop-flip, and torchvision's AutoAugment)."""
    cutout: int = 0
    """Side in pixels of a square that is cut out of every training image."""
    max_images: int | None = None
    """Use only so many training images, drawn at random and then split in halves."""
    split: Split = "random"
    """How the images that train the weights and those that train alpha and validate are divided: random
    (halves, by the seed), ranges (the first and the second half, in the order of the data set) or shared (all
    images serve both)."""


@dataclass(frozen=True)
class LimitSettings:
    """What the found cell's network may cost at most, as large as its paper trains it, for one image."""

    max_parameters: int | None = None
    """Parameters, without those of an auxiliary head."""
    max_macs: int | None = None
    """Multiply-adds of convolutions and products."""
    max_latency_ms: float | None = None
    """Milliseconds for one image, measured here: the network in evaluation mode as a plain PyTorch module, on
    as many CPU threads as the search has, the fastest of several passes."""

    @property
    def given(self) -> dict[Cost, float]:
        """Those that are given, by what they limit."""
        limits = {cost: getattr(self, f"max_{cost}") for cost in COSTS}
        return {cost: float(limit) for cost, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class ExecutionSettings:
    """What the search runs on."""

    fused: bool = True
    """Train and evaluate through the fused operations; the same numbers, faster."""
    backend: BackendName = "auto"
    """What serves those fused operations that it has; an error if it cannot. auto: the best for each."""
    precision: Precision = "fp32"
    """fp32 (exact), tf32 (CUDA: rounded in products) or bf16 (activations; parameters stay float32)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    cuda_graphs: bool = True
    """On CUDA, start a training step and a batch of leave-one-out as one CUDA graph each."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's. Beside busy programs use 1, or set OMP_WAIT_POLICY=passive."""
    memory_budget_mib: int | None = None
    """Memory for the variants that are evaluated together, in MiB. Default: what is fast."""


@dataclass(frozen=True)
class ReportingSettings:
    """What is reported besides the result."""

    benchmark_table: Path | None = None
    """Where to look the accuracies of each epoch's cell up (csv or csv.gz). Default: the package's table."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder too."""
    snapshots: bool = False
    """Keep supernet and alpha of every evaluation in the run folder, for vpdarts_fast.analysis.kendall."""
