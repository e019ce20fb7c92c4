"""All settings of a training together, the presets, and what a resumed training may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vpdarts_fast.bounds import BOUNDS, check_bound
from vpdarts_fast.data import GIVEN
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.formats import TRAINING_SETTINGS
from vpdarts_fast.search.config import SearchConfig, flag
from vpdarts_fast.search.settings import ImageSettings
from vpdarts_fast.search.settings_files import from_values, leaves, to_values, with_settings
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import Space
from vpdarts_fast.train.settings import (
    NetworkSettings,
    TrainExecutionSettings,
    TrainingSettings,
    TrainReportingSettings,
)

Preset = Literal["short", "nas-bench-201-12", "nas-bench-201-200", "darts"]

FIRST_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""A place holder, before a cell is known; also what messages show as an example."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training. The defaults are those of NAS-Bench-201's 200 epochs."""

    preset: Preset = "nas-bench-201-200"
    """Where the defaults of all other settings come from: short (a small network, a few epochs),
    nas-bench-201-12 and nas-bench-201-200 (the benchmark's protocols) or darts (600 epochs, as in its paper).
    Default: short for embedded digits, else what the space's paper does."""
    cell: Annotated[str, tyro.conf.Suppress] = FIRST_CELL
    space: Annotated[Space[Any], tyro.conf.Suppress] = field(default_factory=NasBench201)
    images: ImageSettings = field(default_factory=ImageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    execution: TrainExecutionSettings = field(default_factory=TrainExecutionSettings)
    reporting: TrainReportingSettings = field(default_factory=TrainReportingSettings)

    def __post_init__(self) -> None:
        for name, value in self.flat().items():
            if name in BOUNDS and not isinstance(value, str):  # --images is a word here
                check_bound(name, value, flag(name))
        self.space.parse(self.cell)
        if self.reporting.benchmark_table is not None and not isinstance(self.space, NasBench201):
            raise UserError(
                f"--benchmark-table is of NAS-Bench-201; leave it out for a cell of {self.space.name}"
            )

    @property
    def genotype(self) -> Any:
        """The cell, as its space writes it down."""
        return self.space.parse(self.cell)

    def flat(self) -> dict[str, Any]:
        """Lists the settings of all groups by their names; those of the space are none of them."""
        groups = (self.images, self.network, self.training, self.execution, self.reporting)
        settings = {name: value for group in groups for name, value in leaves(group)}
        return {"preset": self.preset, "cell": self.cell, "space": self.space.name, **settings}

    def replaced(self, **settings: Any) -> TrainConfig:
        """Makes a copy with other values of some settings, by their names; `space` is a part itself.

        Raises:
            UserError: no setting has a name, or a value is not allowed.
        """
        groups: dict[str, Any] = {
            name: settings.pop(name) for name in ("preset", "cell", "space") if name in settings
        }
        for name in ("images", "network", "training", "execution", "reporting"):
            group = getattr(self, name)
            own = {key: settings.pop(key) for key, _ in leaves(group) if key in settings}
            groups[name] = with_settings(group, own)
        if settings:
            raise UserError(f"no setting is called {', '.join(map(flag, settings))}")
        kept = {name: getattr(self, name) for name in ("preset", "cell", "space")}
        return TrainConfig(**{**kept, **groups})

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """Makes plain values for config.json and the checkpoint, with the mark of their format."""
        return TRAINING_SETTINGS.marked(to_values(self, folder))

    @classmethod
    def from_json(cls, values: Any, source: str, folder: Path | None = None) -> TrainConfig:
        """The inverse of `to_json`; `UserError` naming `source` if it is anything else."""
        return from_values(cls, TRAINING_SETTINGS.upgraded(values, source), source, folder)

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Reads config.json of a training; `UserError` if it is damaged or of a newer version."""
        return from_values(cls, TRAINING_SETTINGS.read_json(path), str(path), path.parent)


FREE_ON_RESUME = frozenset({
    "data", "cache", "download", "benchmark_table",  # where things lie
    "device", "threads", "fused",  # what they run on
    "benchmark_data", "onnx",  # what is reported
})  # fmt: skip
"""Settings that do not say what is trained, so that a resumed training may set them anew."""


def contradictions(saved: TrainConfig, asked: TrainConfig) -> list[str]:
    """Lists the settings of a resumed training that differ and matter, as `--flag: saved, asked`."""
    others = asked.flat()
    return [
        f"{flag(name)}: the training has {value}, asked for {others.get(name)}"
        for name, value in saved.flat().items()
        if name not in FREE_ON_RESUME and others.get(name) != value
    ]


_BENCHMARK = TrainConfig()

PRESETS: dict[str, TrainConfig] = {
    "short": _BENCHMARK.replaced(
        preset="short", dataset="digits", epochs=10, batch_size=64, anneal="steps", gradient_clip=5.0
    ),
    "nas-bench-201-12": _BENCHMARK.replaced(preset="nas-bench-201-12", epochs=12, images="half"),
    "nas-bench-201-200": _BENCHMARK,
    "darts": _BENCHMARK.replaced(
        preset="darts",
        epochs=600,
        batch_size=96,
        learning_rate=0.025,
        nesterov=False,
        weight_decay=3e-4,
        gradient_clip=5.0,
        cutout=16,
        auxiliary_weight=0.4,
        drop_path=0.2,
    ),
}
"""The settings of each value of --preset; sizes of networks that are not set are those of the paper."""

SHORT_SIZES = {"nas-bench-201": {"channels": 16, "depth": 1}, "darts": {"channels": 8, "depth": 5}}
"""Of the networks of the preset short, by the family of the space."""


OF_PRESET = frozenset({"cutout"})
"""Settings of images that are the preset's, whatever a search had."""


def family(space: Space[Any]) -> str:
    """The name of the space whose networks those of a space are."""
    return Darts.name if isinstance(space, Darts) else space.name


def preset_for(space: Space[Any], dataset: str) -> str:
    """The preset where none is named: short on digits, else the long one of the space's paper."""
    if dataset == "digits":
        return "short"
    return {"nas-bench-201": "nas-bench-201-200", "darts": "darts"}.get(family(space), "short")


def config_of(preset: str, cell: str, space: Space[Any], images: ImageSettings | None) -> TrainConfig:
    """The settings of a preset for a cell.

    Args:
        preset: a key of `PRESETS`.
        cell: the genotype as text.
        space: that it is of.
        images: the data set; None takes that of the preset.
    """
    sizes = SHORT_SIZES.get(family(space), {}) if preset == "short" else {}
    config = PRESETS[preset].replaced(cell=cell, space=space, **sizes)
    if images is None:
        return config
    return config.replaced(**{name: value for name, value in leaves(images) if name not in OF_PRESET})


def space_of(text: str) -> Space[Any]:
    """The space that a genotype as text is of, the first one that reads it.

    Raises:
        UserError: none does.
    """
    for name in Space.names():
        space: Space[Any] = Space.named(name)()
        try:
            space.parse(text)
        except UserError:
            continue
        return space
    raise UserError(
        f"{text[:200]!r} is neither the folder of a search nor a cell of {', '.join(Space.names())}. A cell "
        f"of NAS-Bench-201 is written '{FIRST_CELL}', one of the DARTS space as Genotype(normal=[...], "
        "normal_concat=..., reduce=[...], reduce_concat=...), a cell of a space of your own needs --plugin"
    )


def found_by(config: SearchConfig, architecture: str) -> tuple[str, Space[Any], ImageSettings]:
    """Cell, space and data set of a search that is over, for `config_of`.

    Raises:
        UserError: the cell is none of the space, or the images were given by Python code.
    """
    config.space.parse(architecture)
    if config.images.dataset == GIVEN:
        raise UserError(
            "the images of this search were given to vpdarts_fast.search_cells and are in no file that is "
            f"known: train its cell on a data set of files, as in `python -m vpdarts_fast.train "
            f"'{architecture}' --dataset npz --data images.npz`"
        )
    return architecture, config.space, with_settings(config.images, {"max_images": None})
