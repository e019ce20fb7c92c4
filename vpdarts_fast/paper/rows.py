"""What is run for a table or figure: methods, each with its own parts and with settings common to all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vpdarts_fast.errors import UserError
from vpdarts_fast.paper.published import TABLE_1, TABLE_2, TABLE_3, Published
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.methods.recipes import LINEAGES, RECIPES
from vpdarts_fast.search.tabular.evolution import Evolution
from vpdarts_fast.search.tabular.learner import TabularMethod
from vpdarts_fast.search.tabular.local_search import LocalSearch
from vpdarts_fast.search.tabular.random_search import RandomSearch
from vpdarts_fast.search.tabular.reinforce import Reinforce
from vpdarts_fast.search.tabular.renas import Renas

What = Literal["table1", "table2", "table3", "figure5", "figure8"]
Size = Literal["quick", "reduced", "paper"]

TABULAR: Mapping[str, TabularMethod] = {
    method.name: method for method in (RandomSearch(), Reinforce(), Evolution(), Renas(), LocalSearch())
}
"""Methods that look accuracies up in a benchmark table, by their names."""

PUBLISHED: Mapping[What, Mapping[str, Published]] = {"table1": TABLE_1, "table2": TABLE_2, "table3": TABLE_3}

PROPORTIONS = (0.1, 0.3, 0.5, 0.7, 1.0)
"""Of the validation images, for Figure 8; the paper has 10 % to 100 %."""

EPOCHS: Mapping[Size, int] = {"quick": 8, "reduced": 25, "paper": 50}

SIZES: Mapping[Size, Mapping[str, Any]] = {
    "quick": {"dataset": "digits", "channels": 4, "cells_per_stage": 1, "max_images": 640},
    "reduced": {"channels": 8, "cells_per_stage": 1, "images_per_epoch": 5_000, "validation_proportion": 0.1},
    "paper": {"channels": 16, "cells_per_stage": 5},
}

COMMON: Mapping[str, Any] = {
    "batch_size": 64,
    "learning_rate": 0.025,
    "learning_rate_end": 0.001,
    "momentum": 0.9,
    "gradient_clip": 5.0,
    "alpha_learning_rate": 3e-4,
    "alpha_betas": (0.5, 0.999),
    "alpha_weight_decay": 1e-3,
    "alpha_rate_scaling": True,
    "committee": 1,
    "finalists": 0,
}
"""Laid over all methods that train a supernet, beside a size, a number of epochs and a lineage."""


@dataclass(frozen=True)
class Row:
    """One row of a table or one point of a figure.

    Attributes:
        name: of its folder, and in tables.
        recipe: of the searches; for a method over a benchmark table, that method's name.
        settings: on top of the common ones.
    """

    name: str
    recipe: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tabular(self) -> TabularMethod | None:
        """The method over a benchmark table, if it is one."""
        return TABULAR.get(self.recipe)


def rows_of(what: What, methods: Sequence[str]) -> list[Row]:
    """Lists the rows of a table or the points of a figure.

    Args:
        what: the table or figure.
        methods: in place of those of the paper; none for these.

    Raises:
        UserError: a method is not known, or the figure is of one method.
    """
    for name in methods:
        if name not in RECIPES and name not in TABULAR:
            raise UserError(f"--methods {name} is not known; there are {', '.join((*TABULAR, *RECIPES))}")
        if what.startswith("figure") and name in TABULAR:
            raise UserError(f"{what} is about supernets; --methods {name} has none")
    if what == "figure8":
        return [
            Row(f"{name}-{100 * share:.0f}-percent", name, {"validation_proportion": share})
            for name in methods or ("vp-darts-fixed",)
            for share in PROPORTIONS
        ]
    if what == "figure5":
        return [Row(f"{name}-snapshots", name, {"snapshots": True}) for name in methods or ("darts",)]
    return [_row(name) for name in methods or PUBLISHED[what]]


def _row(name: str) -> Row:
    """In the paper, alpha's magnitude decides with fixed K, as what it is compared with."""
    return Row(name, name, {"decay": "fixed"} if name == "vp-darts-alpha" else {})


def config_of(row: Row, size: Size, lineage: str, images: Mapping[str, Any]) -> SearchConfig:
    """The settings of a row's searches: the recipe's, and over them those that all methods share.

    Args:
        row: of a method that trains a supernet.
        size: of supernet, images and epochs.
        lineage: `LINEAGES`, how the weights are trained.
        images: settings of the images.
    """
    config = SearchConfig().replaced(recipe=row.recipe)
    settings = {**COMMON, **LINEAGES[lineage], **SIZES[size], **images, **row.settings}
    if config.method.alpha_rule.joint:
        settings["split"] = "shared"  # its only loss is that of all images
    schedule = config.method.schedule.of_length(EPOCHS[size], config.space)
    return config.replaced(schedule=schedule, lineage=lineage, **settings)


_LAID_OVER = frozenset(
    {
        *COMMON,
        *LINEAGES["autodl"],
        *(name for size in SIZES.values() for name in size),
        "batch_norm",
        "criterion",
    }
)
"""Settings that say under which conditions all methods run."""


def shared_settings(configs: Sequence[SearchConfig]) -> dict[str, Any]:
    """The settings that all rows have in common, of those that say under which conditions they run."""
    flats = [config.flat() for config in configs]
    return {
        name: value
        for name, value in flats[0].items()
        if name in _LAID_OVER and all(flat.get(name) == value for flat in flats)
    }


def own_settings(row: Row, config: SearchConfig) -> dict[str, tuple[Any, Any]]:
    """What the method's own paper or code has, and what it has here instead, by setting."""
    own, here = SearchConfig().replaced(recipe=row.recipe).flat(), config.flat()
    names = [
        name for name in here if name in _LAID_OVER or name.endswith("_epochs") or name.startswith("commit_")
    ]
    return {name: (own.get(name), here[name]) for name in names if own.get(name) != here[name]}
