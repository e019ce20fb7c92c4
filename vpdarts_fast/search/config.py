"""The settings of a search: one frozen dataclass is the only home of defaults."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.bounds import BOUNDS, check_bound
from vpdarts_fast.data import DATASETS
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, Removal
from vpdarts_fast.evaluation.racing import IMAGE_SCORES
from vpdarts_fast.runs.formats import SETTINGS, shown
from vpdarts_fast.runtime.precision import Precision
from vpdarts_fast.search.criteria import CRITERIA

if TYPE_CHECKING:
    Dataset = str
    BackendName = str
    CriterionName = str
else:  # what `load` knows is only known at run time, and so are backends and criteria
    Dataset = Literal[DATASETS]
    BackendName = Literal[("auto", *(backend.name for backend in BACKENDS))]
    CriterionName = Literal[tuple(CRITERIA)]

Preset = Literal["quick", "cpu", "paper"]
Pruning = Literal["soft", "hard", "progressive"]
Decay = Literal["adjustable", "fixed"]
Evaluation = Literal["full", "racing"]
StepOrder = Literal["weights-first", "alpha-first"]


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class SearchConfig:
    """A VP-DARTS search on NAS-Bench-201. The defaults are the paper's (sections 3 and 4.2)."""

    preset: Preset = "paper"
    """Where the defaults of all other settings come from: quick (embedded digits, half a minute), cpu
    (CIFAR-10; a committee of small supernets, evaluated once) or paper."""

    # Data
    dataset: Dataset = "cifar10"
    """digits is embedded; the others read files from --data."""
    data: Path | None = None
    """Folder of the data set, or the .npz file for --dataset npz. Default: ./data."""
    download: bool = False
    """Fetch CIFAR-10 or CIFAR-100 into the --data folder if it is not there."""
    max_images: int | None = None
    """Use only so many training images, drawn at random and then split in halves."""

    images_per_epoch: int | None = None
    """Visit only so many images of each half in an epoch, drawn anew for every one. Default: all."""

    # Supernet
    channels: int = 16
    """C, the channels of the first stage."""
    cells_per_stage: int = 5
    """N, the cells of each of the three stages."""
    skip_dropout: float = 0.2
    """Probability of the dropout behind every skip connection while training."""
    alpha_start: float = 0.2
    """Where every alpha starts; 1/O."""
    alpha_noise: float = 0.0
    """Standard deviation of normal noise around that start, drawn for each alpha."""

    # Search
    warmup_epochs: int = 20
    """Epochs with alpha frozen."""
    pruning_epochs: int = 30
    """Epochs after that, each begun by an evaluation and a pruning."""
    pruning: Pruning = "soft"
    """soft (the paper), hard (once, at the end) or progressive (5, 3, 2, 1 ops in stages; hard)."""
    decay: Decay = "adjustable"
    """Soft pruning's K: adjustable (the pruning epoch) or fixed (pruned alphas become 0)."""
    criterion: CriterionName = "accuracy"
    """What makes an op important: the accuracy or loss without it, or the magnitude of its alpha."""
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

    # Finalists
    finalists: int = 0
    """Cells that are trained from scratch for a short time at the end, the found one among them; a clearly
    better one is taken instead. 0: none, the search alone decides."""
    finalist_channels: int = 8
    """C of the networks in which they are trained."""
    finalist_cells_per_stage: int = 5
    """N of these networks."""
    finalist_steps: int = 100
    """Training steps of the first rung; each rung is four times as long as the one before."""
    finalist_budget: int = 12_000
    """Training steps of all finalists together, at most."""
    finalist_margin: float = 5.0
    """Points by which a clearly better cell has to lead after 400 steps; after n times those an n-th."""

    # Optimisers
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
    alpha_learning_rate: float = 3e-4
    """Of alpha (Adam)."""
    alpha_rate_scaling: bool = False
    """Scale alpha's learning rate with the number of its steps, so that rate times steps is that of the
    paper's search: the fewer steps than its 11,730, the higher the rate."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's betas for alpha."""
    alpha_weight_decay: float = 1e-3
    """Of alpha (Adam's L2 penalty)."""
    step_order: StepOrder = "weights-first"
    """Which of the two steps comes first, every time, in a pruning epoch."""

    # Execution
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
    seed: Annotated[int, tyro.conf.Suppress] = 0
    """Of every random number; --seeds sets it."""

    # Reporting
    benchmark_table: Path | None = None
    """Where to look the accuracies of each epoch's cell up (csv or csv.gz). Default: the package's table."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder too."""
    snapshots: bool = False
    """Keep supernet and alpha of every evaluation in the run folder, for vpdarts_fast.analysis.kendall."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in BOUNDS:
                check_bound(name, value, flag(name))
        if self.warmup_epochs + self.pruning_epochs == 0:
            raise UserError("--warmup-epochs and --pruning-epochs are both 0: nothing to train")
        if self.finalists == 1:
            raise UserError("--finalists must be 0, for none, or at least 2: one has nothing to compare with")
        trainings = self.finalists + min(self.finalists, SEEDED_TWICE)
        if self.finalists and self.finalist_budget < (least := trainings * self.finalist_steps):
            raise UserError(
                f"--finalist-budget must be at least {least:,}, {trainings} times --finalist-steps "
                f"{self.finalist_steps:,}: each of the {self.finalists} --finalists once and "
                f"{trainings - self.finalists} of them with a second seed; got {self.finalist_budget:,}"
            )
        if self.evaluation == "racing":
            self._check_racing()
        if self.backend != "auto" and not self.fused:
            raise UserError(f"--backend {self.backend} is for fused operations; leave it out with --no-fused")

    def _check_racing(self) -> None:
        """A race tells the most important op of each edge and a single supernet, and no more."""
        racing = "--evaluation racing finds the most important op of each edge"
        if self.criterion not in IMAGE_SCORES:
            raise UserError(f"{racing} by the scores of images; --criterion {self.criterion} has none")
        if self.pruning == "progressive":
            raise UserError(f"{racing}; --pruning progressive needs the order of all: use --evaluation full")
        if self.committee > 1:
            raise UserError(
                f"{racing} for one supernet, not for the mean of --committee {self.committee}; "
                "use --evaluation full"
            )

    @property
    def epochs(self) -> int:
        return self.warmup_epochs + self.pruning_epochs

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """Plain values for config.json and the checkpoint, with the mark of their format.

        A path becomes a list of places: the absolute one and, for a file in `folder`, the one relative to
        that folder, which is still right when both have moved together.
        """
        values = dataclasses.asdict(self)
        return SETTINGS.marked(
            {
                name: _places(value, folder) if isinstance(value, Path) else value
                for name, value in values.items()
            }
        )

    @classmethod
    def from_json(cls, values: Any, source: str, folder: Path | None = None) -> SearchConfig:
        """The inverse of `to_json`, also for what an older version wrote.

        Raises:
            UserError: naming `source`, if it is anything else or of a newer version.
        """
        return cls._from_values(SETTINGS.upgraded(values, source), source, folder)

    @classmethod
    def read(cls, path: Path) -> SearchConfig:
        """The settings in config.json of a run; `UserError` if it is damaged or of a newer version."""
        return cls._from_values(SETTINGS.read_json(path), str(path), path.parent)

    @classmethod
    def _from_values(cls, values: dict[str, Any], source: str, folder: Path | None) -> SearchConfig:
        hints = get_type_hints(cls)
        if set(values) != set(hints):
            odd = sorted(set(values) ^ set(hints))
            raise UserError(f"{source} has missing or unknown settings: {', '.join(odd)[:200]}")
        converted = {name: _converted(value, hints[name], folder) for name, value in values.items()}
        for name, value in converted.items():
            if not _fits(value, hints[name]):
                raise UserError(f"{source}: {name} must be {_described(hints[name])}; got {shown(value)}")
        try:
            return cls(**converted)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def _places(path: Path, folder: Path | None) -> list[str]:
    absolute = path.expanduser().absolute()
    if folder is None:
        return [str(absolute)]
    # Where symbolic links lead: that is where the file system starts from when it goes up.
    return [str(absolute), os.path.relpath(absolute.resolve(), folder.resolve())]


def _converted(value: Any, hint: Any, folder: Path | None) -> Any:
    """JSON knows neither paths nor tuples; of a path's places the first one where there is something."""
    if Path in get_args(hint) and isinstance(value, list):
        if not value or not all(isinstance(place, str) and place and "\0" not in place for place in value):
            return value
        base = (folder or Path()).resolve()
        candidates = [
            Path(place if Path(place).is_absolute() else os.path.normpath(base / place)) for place in value
        ]
        return next(filter(os.path.exists, candidates), candidates[0])
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a setting's type; a whole number will do for a float, a bool for no number.

    Numbers are finite and fit into 64 bits.
    """
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, (int, float)) and not -(1 << 63) <= value < 1 << 63:  # nor is NaN
        return False
    kind = (int, float) if hint is float else hint
    return isinstance(value, kind) and isinstance(value, bool) == (hint is bool)


def _described(hint: Any) -> str:
    """A setting's type for people."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("None", "null")


SEEDED_TWICE = 4
"""So few finalists are trained with a second seed, and none of them is left out for its rank alone."""

FREE_ON_RESUME = frozenset({
    "data", "download", "benchmark_table",  # where things lie
    "device", "backend", "threads", "memory_budget_mib", "cuda_graphs",  # what they run on
    "tensorboard", "snapshots",  # what is reported
})  # fmt: skip
"""Settings that do not say what is searched, so that a resumed run may set them anew."""

PRESETS: dict[str, SearchConfig] = {
    "quick": SearchConfig(
        preset="quick",
        dataset="digits",
        channels=8,
        cells_per_stage=1,
        warmup_epochs=10,
        pruning_epochs=15,
        finalists=4,
        finalist_cells_per_stage=1,
        finalist_steps=30,
        finalist_budget=1_000,
    ),
    "cpu": SearchConfig(
        preset="cpu",
        images_per_epoch=5_000,
        channels=8,
        warmup_epochs=4,
        pruning_epochs=0,
        criterion="loss",
        validation_proportion=0.05,
        committee=16,
        finalists=12,
        finalist_steps=1_600,
        finalist_budget=25_600,
        finalist_margin=2.0,
    ),
    "paper": SearchConfig(),
}


def contradictions(saved: SearchConfig, asked: SearchConfig) -> list[str]:
    """Settings of a resumed run that differ and matter, as `--flag: saved, asked`."""
    return [
        f"{flag(name)}: the run has {value}, asked for {getattr(asked, name)}"
        for name, value in vars(saved).items()
        if name not in FREE_ON_RESUME and getattr(asked, name) != value
    ]
