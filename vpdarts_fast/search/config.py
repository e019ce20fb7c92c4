"""All settings of a search together, the presets, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpdarts_fast.bounds import BOUNDS, check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.racing import IMAGE_SCORES
from vpdarts_fast.runs.formats import SETTINGS
from vpdarts_fast.search.methods.recipes import lineage, recipe
from vpdarts_fast.search.methods.schedules import Stage
from vpdarts_fast.search.methods.stopping import NoStopping
from vpdarts_fast.search.settings import (
    ExecutionSettings,
    ImageSettings,
    MethodSettings,
    OptimiserSettings,
    ReportingSettings,
    SearchSettings,
)
from vpdarts_fast.search.settings_files import from_values, leaves, to_values, with_settings
from vpdarts_fast.spaces import darts as darts  # so that --space finds them
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import Space

Preset = Literal["quick", "cpu", "paper"]


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class SearchConfig:
    """The settings of a search. The defaults are those of VP-DARTS' paper (sections 3 and 4.2)."""

    preset: Preset = "paper"
    """Where the defaults of all other settings come from: quick (embedded digits, half a minute), cpu
    (CIFAR-10; a committee of small supernets, evaluated once) or paper."""
    images: ImageSettings = field(default_factory=ImageSettings)
    space: Space[Any] = field(default_factory=NasBench201)
    search: SearchSettings = field(default_factory=SearchSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    optimisers: OptimiserSettings = field(default_factory=OptimiserSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    reporting: ReportingSettings = field(default_factory=ReportingSettings)

    def __post_init__(self) -> None:
        for name, value in self.flat().items():
            if name in BOUNDS:
                check_bound(name, value, flag(name))
        self._check_search()
        self._check_method()
        if self.execution.backend != "auto" and not self.execution.fused:
            backend = self.execution.backend
            raise UserError(f"--backend {backend} is for fused operations; leave it out with --no-fused")

    def _check_search(self) -> None:
        search = self.search
        if search.finalists == 1:
            raise UserError("--finalists must be 0, for none, or at least 2: one has nothing to compare with")
        trainings = search.finalists + min(search.finalists, SEEDED_TWICE)
        if search.finalists and search.finalist_budget < (least := trainings * search.finalist_steps):
            raise UserError(
                f"--finalist-budget must be at least {least:,}, {trainings} times --finalist-steps "
                f"{search.finalist_steps:,}: each of the {search.finalists} --finalists once and "
                f"{trainings - search.finalists} of them with a second seed; got {search.finalist_budget:,}"
            )
        criterion = self.method.criterion
        if search.metric != "accuracy" and criterion.estimates:
            raise UserError(
                f"--metric {search.metric} is measured, and --criterion {criterion.name} estimates losses: "
                "use --criterion accuracy or loss, or --metric accuracy"
            )
        if search.evaluation == "racing":
            self._check_racing()

    def _check_method(self) -> None:
        method = self.method
        if method.pruning.decays and not method.relaxation.zero_removes:
            raise UserError(
                f"--pruning {method.pruning.name} makes alphas smaller, which means less weight only for raw "
                f"alphas; with --relaxation {method.relaxation.name} use --pruning hard or progressive"
            )
        if method.variation.one_hot and not method.relaxation.one_hot:
            raise UserError(
                f"--variation {method.variation.name} computes one op of an edge: use --relaxation gumbel "
                f"--hard; got --relaxation {method.relaxation.name}"
            )
        method.variation.check(self.space)
        method.schedule.check(self.space)
        if method.schedule.commits and method.stopping.name != NoStopping.name:
            raise UserError(
                f"--stopping {method.stopping.name} would end a search before --schedule "
                f"{method.schedule.name} has decided its edges"
            )
        if method.schedule.commits and method.pruning.name != "hard":
            raise UserError(
                f"--schedule {method.schedule.name} decides edges and prunes no ops before: use --pruning "
                f"hard; got --pruning {method.pruning.name}"
            )

    def _check_racing(self) -> None:
        """A race tells the most important op of each edge and a single supernet, and no more."""
        racing = "--evaluation racing finds the most important op of each edge"
        criterion, pruning = self.method.criterion.name, self.method.pruning
        if criterion not in IMAGE_SCORES:
            raise UserError(f"{racing} by the scores of images; --criterion {criterion} has none")
        if self.search.metric != "accuracy":
            raise UserError(
                f"{racing} by the scores of images, and --metric {self.search.metric} is one of classes: use "
                "--evaluation full"
            )
        if (schedule := self.method.schedule).evaluates_edges:
            raise UserError(
                f"{racing}; --schedule {schedule.name} evaluates one edge at a time: use --evaluation full"
            )
        if pruning.needs_order:
            raise UserError(
                f"{racing}; --pruning {pruning.name} needs the order of all: use --evaluation full"
            )
        if self.search.committee > 1:
            raise UserError(
                f"{racing} for one supernet, not for the mean of --committee {self.search.committee}; "
                "use --evaluation full"
            )

    @property
    def measures_eigenvalue(self) -> bool:
        """Whether the curvature by alpha is measured in every epoch."""
        return self.search.eigenvalue or self.method.stopping.needs_eigenvalue

    @property
    def fused_by_itself(self) -> bool:
        """Whether the supernet runs on the fused ops by itself; others are accelerated by the search."""
        return self.space.fused and not self.method.variation.varies

    @property
    def epochs(self) -> int:
        """How many epochs the search has."""
        return self.method.schedule.epochs(self.space)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the search, in their order."""
        return self.method.schedule.stages(self.space)

    @property
    def frozen_epochs(self) -> int:
        """How many epochs there are before the first that trains alpha."""
        return sum(stage.epochs for stage in itertools.takewhile(lambda stage: not stage.alpha, self.stages))

    @property
    def alpha_epochs(self) -> int:
        """How many epochs train alpha."""
        return sum(stage.epochs for stage in self.stages if stage.alpha) if self._alpha_moves else 0

    def stage(self, epoch: int) -> Stage:
        """Finds the stage of an epoch, from 0; alpha is not trained where its rule does not move it."""
        stage = self.method.schedule.stage(epoch, self.space)
        return dataclasses.replace(stage, alpha=stage.alpha and self._alpha_moves)

    def batch_size(self, epoch: int) -> int:
        """Images in a training step of an epoch, from 0."""
        return self.method.schedule.batch_size(epoch, self.optimisers.batch_size, self.space)

    @property
    def _alpha_moves(self) -> bool:
        return self.method.alpha_rule.moves

    def flat(self) -> dict[str, Any]:
        """Lists all settings of all groups by their names; a part by its name, before its own settings.

        Raises:
            UserError: two settings have the same name.
        """
        values: dict[str, Any] = {}
        for name, value in leaves(self):
            if name in values:
                raise UserError(f"two settings are called {flag(name)}: rename one of the parts' settings")
            values[name] = value
        return values

    def replaced(self, **settings: Any) -> SearchConfig:
        """Makes a copy with other values of some settings, by their names; a part by its name or itself.

        A recipe brings its settings along, but for those of parts that others take the place of; a lineage
        goes over the recipe.

        Raises:
            UserError: no setting has a name, or a value is not allowed.
        """
        left = dict(settings)
        if "recipe" in left or "lineage" in left:
            of_recipe = recipe(left["recipe"]) if "recipe" in left else {}
            left = {**of_recipe, **lineage(left.get("lineage", self.method.lineage)), **left}
        changed: SearchConfig = with_settings(self, left)
        if unknown := [name for name in left if name in settings]:
            raise UserError(f"no setting is called {', '.join(map(flag, unknown))}")
        return changed

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """Makes plain values for config.json and the checkpoint, with the mark of their format.

        Paths become lists of places; `folder` is the one to which the second place is relative.
        """
        return SETTINGS.marked(to_values(self, folder))

    @classmethod
    def from_json(cls, values: Any, source: str, folder: Path | None = None) -> SearchConfig:
        """The inverse of `to_json`, also for what an older version wrote.

        Raises:
            UserError: naming `source`, if it is anything else or of a newer version.
        """
        return from_values(cls, SETTINGS.upgraded(values, source), source, folder)

    @classmethod
    def read(cls, path: Path) -> SearchConfig:
        """Reads the settings in config.json of a run; `UserError` if it is damaged or of a newer version."""
        return from_values(cls, SETTINGS.read_json(path), str(path), path.parent)


SEEDED_TWICE = 4
"""So few finalists are trained with a second seed, and none of them is left out for its rank alone."""

FREE_ON_RESUME = frozenset({
    "data", "cache", "download", "benchmark_table",  # where things lie
    "device", "backend", "threads", "memory_budget_mib", "cuda_graphs",  # what they run on
    "tensorboard", "snapshots",  # what is reported
})  # fmt: skip
"""Settings that do not say what is searched, so that a resumed run may set them anew."""

LEFT_OPEN = {"stem": "auto"}
"""What settings are that the images decide where a run begins: a run that is only prepared still has them,
and what is asked for again may have them; what they come to is compared later."""

_PAPER = SearchConfig()

PRESETS: dict[str, SearchConfig] = {
    "quick": _PAPER.replaced(
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
    "cpu": _PAPER.replaced(
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
    "paper": _PAPER,
}
"""The settings of each value of --preset."""


def contradictions(saved: SearchConfig, asked: SearchConfig) -> list[str]:
    """Lists the settings of a resumed run that differ and matter, as `--flag: saved, asked`."""
    others = asked.flat()
    return [
        f"{flag(name)}: the run has {value}, asked for {others.get(name)}"
        for name, value in saved.flat().items()
        if name not in FREE_ON_RESUME
        and others.get(name) != value
        and not (name in LEFT_OPEN and LEFT_OPEN[name] in (value, others.get(name)))
    ]
