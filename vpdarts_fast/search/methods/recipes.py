"""Methods by their names: which parts a method is composed of, and the settings of its paper.

A recipe is a table of settings that take the place of the preset's; what the command line says comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpdarts_fast.errors import UserError

RECIPES: dict[str, Mapping[str, Any]] = {
    "vp-darts": {},
    "vp-darts-fixed": {"decay": "fixed"},
    "vp-darts-hard": {"pruning": "hard"},
    "vp-darts-progressive": {"pruning": "progressive"},
    "vp-darts-alpha": {"criterion": "alpha"},
    "darts": {
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
    },
}
"""vp-darts and its ablations (sections 5.1 and 5.2); darts: DARTS of the first order."""


def recipe(name: str) -> Mapping[str, Any]:
    """The settings of a method; `UserError` for a name that is not known."""
    if name not in RECIPES:
        raise UserError(f"--method {name} is not known; there are {', '.join(RECIPES)}")
    return RECIPES[name]
