"""A training step of each method in NAS-Bench-201, as the search takes it: C=16, N=1, 64 images, no dropout.

What differs between methods is the supernet (all channels, a part of them, one op, decided edges, an
auxiliary skip) and how a step of alpha finds its gradient; methods that differ in neither have DARTS' rows.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import pytest
import torch
from contenders import CLASSES, EAGER, Contender, Form, new_batch, relative_error
from example_step import EXAMPLE_FORMS
from torch import Tensor

from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import alpha_step, weights_step

pytestmark = pytest.mark.full

BATCH = 64

VARIED = ("darts", "gdas", "pc-darts", "sgas", "darts-minus")
ROWS = [
    *((recipe, phase) for recipe in VARIED for phase in ("weights", "alpha")),
    ("darts-second-order", "alpha"),
    ("idarts", "alpha"),
]

COMPARED = [form for form in EXAMPLE_FORMS if form.name != "ours, NCHW"]


class Step:
    """A step of a phase in a form, of a search in its first epoch."""

    def __init__(
        self, form: Form, recipe: str, phase: str, batch: int = BATCH, dtype: torch.dtype = torch.float32
    ):
        self.form, self.phase = form, phase
        self.config = SearchConfig().replaced(
            recipe=recipe, cells_per_stage=1, skip_dropout=0.0, fused=form.fused, device="cpu"
        )
        self.state = SearchState(self.config, CLASSES, torch.device("cpu"))
        state = self.state
        memory = torch.channels_last if form.channels_last else torch.contiguous_format
        state.supernet.to(dtype=dtype, memory_format=memory)
        with torch.no_grad():
            state.alpha.data = state.alpha.to(dtype)
            state.tables = {
                name: table.detach().to(dtype).requires_grad_() for name, table in state.tables.items()
            }
            if self.config.method.relaxation.draws:  # always the same op
                state.alpha[torch.arange(6), torch.tensor([3, 2, 3, 1, 4, 3])] = 50.0
        if self.config.method.schedule.commits:
            state.decided[:3] = torch.tensor([3, 1, 2])
        if form.compiled:
            state.supernet.requires_grad_(phase == "weights" or self.config.method.alpha_rule.needs_training)
            state.supernet.compile(dynamic=False)
        self.batches = []
        for _ in range(2):
            images, labels = new_batch(batch)
            self.batches.append((form.images(images.to(dtype)), labels))

    def __call__(self) -> float:
        """Takes a step; returns the mean loss."""
        return self.form.run(self._step)()

    def _step(self) -> float:
        state, (training, validation) = self.state, self.batches
        torch.manual_seed(0)
        if self.phase == "weights":
            with torch.no_grad():
                weights = state.weights_of(state.alpha)
            loss, _ = weights_step(state.supernet, weights, training, state.weights_optimizer, 5.0)
        else:
            loss, _ = alpha_step(
                state.supernet,
                state.alpha,
                state.alive,
                validation,
                state.alpha_optimizer,
                tables=tuple(state.tables.values()),
                moving=state.moving,
                rule=self.config.method.alpha_rule,
                weights_of=state.weights_of,
                penalty=state.penalty,
                training=training,
                weights_optimizer=state.weights_optimizer,
            )
        return float(loss)

    def gradient(self) -> Tensor:
        """Of the last step, as one vector."""
        if self.phase == "alpha":
            return torch.cat(
                [table.grad.flatten().double() for table in (self.state.alpha, *self.state.tables.values())]
            )
        found = [parameter.grad for parameter in self.state.supernet.parameters()]
        return torch.cat([gradient.flatten().double() for gradient in found if gradient is not None])


def verify(recipe: str, phase: str) -> None:
    """Of a few images against eager PyTorch in float64; as far off as eager PyTorch in float32."""
    exact = Step(EAGER, recipe, phase, 8, torch.float64)
    loss, gradient = exact(), exact.gradient()
    errors = {}
    for form in COMPARED:
        if not form.compiled:
            step = Step(form, recipe, phase, 8)
            assert step() == pytest.approx(loss, rel=1e-4), form.name
            errors[form.name] = relative_error(step.gradient(), gradient)
    yardstick = max(error for form, error in errors.items() if form.startswith("eager"))
    assert max(errors.values()) < 3 * max(yardstick, 1e-3), errors


@pytest.mark.parametrize(("recipe", "phase"), ROWS)
def test_step_of_a_method(recipe: str, phase: str, compare: Callable[..., None]) -> None:
    if phase == "weights" or recipe not in (
        "darts-second-order",
    ):  # kinks between the points of a difference
        verify(recipe, phase)
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    for form in COMPARED:
        step, started = Step(form, recipe, phase), perf_counter()
        try:
            step()
        except Exception as error:  # double backward, which compiled code has not
            if not form.compiled:
                raise
            notes["ours"] = f"{form.name} cannot: {str(error).splitlines()[0][:80]}"
            continue
        steps[form.name] = step
        if form.compiled:
            notes[form.name] = f"the first step took {perf_counter() - started:.0f} s"
    compare({n: Contender(step, note=notes.get(n, "")) for n, step in steps.items()}, rounds=5)
