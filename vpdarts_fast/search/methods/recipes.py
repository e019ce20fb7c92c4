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
    "warmup_epochs": 0,
    "pruning_epochs": 50,
}
"""DARTS of the first order, from which others differ in some settings."""

RECIPES: dict[str, Mapping[str, Any]] = {
    "vp-darts": {},
    "vp-darts-fixed": {"decay": "fixed"},
    "vp-darts-hard": {"pruning": "hard"},
    "vp-darts-progressive": {"pruning": "progressive"},
    "vp-darts-alpha": {"criterion": "alpha"},
    "darts": DARTS,
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
    "beta-darts": {
        **DARTS,
        "regulariser": "beta-decay",
        "beta": 0.0,
        "beta_end": 49.5,
        "pruning_epochs": 100,
    },
    "drnas": {**DARTS, "relaxation": "dirichlet", "pruning_epochs": 100},
    "snas": {
        **DARTS,
        "relaxation": "gumbel",
        "temperature": 10.0,
        "temperature_end": 1.09,
        "pruning_epochs": 100,
    },
    "darts-minus": {**DARTS, "variation": "auxiliary-skip", "skip_decay": "linear"},
}
"""vp-darts and its ablations (sections 5.1 and 5.2); darts: DARTS of the first order; pc-darts, sgas
and darts-minus, with the settings that they have in the DARTS space; beta-darts, drnas (without
progressive stages, its L2 term as alpha's weight decay) and snas (in alternating steps), with those
that they have in NAS-Bench-201."""


def recipe(name: str) -> Mapping[str, Any]:
    """The settings of a method; `UserError` for a name that is not known."""
    if name not in RECIPES:
        raise UserError(f"--method {name} is not known; there are {', '.join(RECIPES)}")
    return RECIPES[name]
