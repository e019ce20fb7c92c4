"""Methods by their names: which parts a method is composed of, and the settings of its paper.

A recipe is a table of settings that take the place of the preset's; what the command line says comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpdarts_fast.errors import UserError

DARTS: Mapping[str, Any] = {
    "relaxation": "softmax",
    "criterion": "alpha",
    "pruning": "hard",
    "alpha_start": 0.0,
    "alpha_noise": 1e-3,
    "step_order": "alpha-first",
    "nesterov": False,
    "weight_decay": 3e-4,
    "skip_dropout": 0.0,
    "warmup_epochs": 0,
    "pruning_epochs": 50,
}
"""DARTS of the first order, from which others differ in some settings."""

LINEAGES: dict[str, Mapping[str, Any]] = {
    "recipe": {},
    "quark0": {
        "step_order": "alpha-first",
        "nesterov": False,
        "weight_decay": 3e-4,
        "gradient_clip": 5.0,
        "split": "ranges",
    },
    "autodl": {
        "step_order": "weights-first",
        "nesterov": True,
        "weight_decay": 5e-4,
        "gradient_clip": 5.0,
        "split": "random",
    },
}
"""How public code trains the supernet: quark0/darts, with DrNAS, beta-DARTS, DARTS-PT and others, or
AutoDL-Projects on NAS-Bench-201. A lineage goes over a recipe; what else differs between them changes nothing
here (docs/decisions.md)."""

SNAS: Mapping[str, Any] = {
    **DARTS,
    "relaxation": "gumbel",
    "temperature": 10.0,
    "temperature_end": 1.09,
    "pruning_epochs": 100,
}
"""In alternating steps."""

DARTS_PT: Mapping[str, Any] = {
    **{name: value for name, value in DARTS.items() if name != "pruning_epochs"},
    "schedule": "perturbation",
    "training_epochs": 100,
    "tuning_epochs": 5,
    "tuning_rate": 0.0025,
    "criterion": "accuracy",
    "batch_norm": "batch",
    "validation_proportion": 1.0,
    "finalists": 0,
}
"""Decides by perturbation."""

RECIPES: dict[str, Mapping[str, Any]] = {
    "vp-darts": {},
    "vp-darts-fixed": {"decay": "fixed"},
    "vp-darts-hard": {"pruning": "hard"},
    "vp-darts-progressive": {"pruning": "progressive"},
    "vp-darts-alpha": {"criterion": "alpha"},
    "darts": DARTS,
    "darts-second-order": {**DARTS, "alpha_rule": "unrolled"},
    "snas": SNAS,
    "snas-joint": {
        **SNAS,
        "alpha_rule": "joint",
        "split": "shared",
        "alpha_start": 1.0,
        "alpha_noise": 1e-2,
        "temperature": 1.0,
        "temperature_end": 0.0365,
        "pruning_epochs": 150,
    },
    "gdas": {
        **DARTS,
        **LINEAGES["autodl"],
        "relaxation": "gumbel",
        "hard": True,
        "variation": "chosen-op",
        "temperature": 10.0,
        "temperature_end": 0.1,
        "pruning_epochs": 250,
    },
    "pc-darts": {
        **DARTS,
        "variation": "partial-channels",
        "channel_parts": 4,
        "edge_normalisation": True,
        "warmup_epochs": 15,
        "pruning_epochs": 35,
        "batch_size": 256,
        "learning_rate": 0.1,
        "learning_rate_end": 0.0,
        "alpha_learning_rate": 6e-4,
    },
    "sgas": {
        **{name: value for name, value in DARTS.items() if name != "pruning_epochs"},
        "schedule": "greedy",
        "commit_after": 10,
        "commit_every": 5,
        "batch_growth": 8,
        "finalists": 0,
    },
    "idarts": {
        **DARTS,
        **LINEAGES["autodl"],
        "alpha_rule": "implicit",
        "neumann_terms": 2,
        "alpha_every": 4,
        "learning_rate": 0.01,
        "pruning_epochs": 120,
    },
    "darts-minus": {**DARTS, "variation": "auxiliary-skip", "skip_decay": "linear"},
    "drnas": {**DARTS, "relaxation": "dirichlet", "pruning_epochs": 100},
    "drnas-progressive": {
        **{name: value for name, value in DARTS.items() if name != "pruning_epochs"},
        "relaxation": "dirichlet",
        "variation": "partial-channels",
        "channel_parts": 4,
        "schedule": "widening",
        "warmup_epochs": 10,
        "half_epochs": 50,
        "kept_ops": 3,
        "wide_parts": 2,
    },
    "beta-darts": {
        **DARTS,
        "regulariser": "beta-decay",
        "beta": 0.0,
        "beta_end": 49.5,
        "pruning_epochs": 100,
    },
    "darts-pt": DARTS_PT,
    "darts-pt-fixed": {**DARTS_PT, "alpha_rule": "frozen"},
    "fair-darts": {
        **DARTS,
        "relaxation": "sigmoid",
        "regulariser": "zero-one",
        "zero_one": 10.0,
        "batch_size": 128,
        "learning_rate": 0.005,
        "alpha_learning_rate": 3e-3,
        "alpha_betas": (0.9, 0.999),
    },
}
"""vp-darts and its ablations (sections 5.1 and 5.2); darts and what derives from it, each with the settings
of its own paper or code: in the DARTS space for pc-darts, sgas, darts-minus, snas-joint and fair-darts, in
NAS-Bench-201 for the others. docs/decisions.md says what was left open."""


def recipe(name: str) -> Mapping[str, Any]:
    """The settings of a method; `UserError` for a name that is not known."""
    if name not in RECIPES:
        raise UserError(f"--method {name} is not known; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def lineage(name: str) -> Mapping[str, Any]:
    """The settings of a lineage; `UserError` for a name that is not known."""
    if name not in LINEAGES:
        raise UserError(f"--lineage {name} is not known; there are {', '.join(LINEAGES)}")
    return LINEAGES[name]
