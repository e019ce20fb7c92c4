"""A step of each phase as the search takes it, C=16, 32x32, 64 images, optimisers and dropout included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from contenders import FORMS, GRADIENT_TOLERANCE, OURS, Contender, relative_error
from step import Step

N5 = pytest.param(5, marks=pytest.mark.full)


def verify(steps: Sequence[Step]) -> None:
    """Loss and gradients as the first one's."""
    loss, gradient = steps[0].without_dropout()
    for step in steps[1:]:
        found, found_gradient = step.without_dropout()
        assert found == pytest.approx(loss, rel=1e-5), step.form.name
        assert relative_error(found_gradient, gradient) < GRADIENT_TOLERANCE, step.form.name


@pytest.mark.parametrize("cells", [1, N5], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("phase", ["weights", "alpha"])
def test_step(phase: str, cells: int, quick: bool, compare: Callable[..., None]) -> None:
    # Compiling takes a minute or two: --quick does it for one phase.
    forms = [form for form in FORMS if not (form.compiled and quick and phase == "alpha")]
    steps = {form.name: Step(form, phase, cells) for form in forms}
    verify(list(steps.values()))
    compare(steps, rounds=7 if cells == 1 else 3)


@pytest.mark.parametrize("phase", ["weights", "alpha"])
def test_step_on_two_threads(phase: str, compare: Callable[..., None]) -> None:
    """Ours on one thread against ours on two."""
    threads = torch.get_num_threads()
    step = Step(OURS, phase, 1)

    def on(count: int) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(count)
            step()

        return work

    try:
        compare({"ours, 1 thread": Contender(on(1)), "ours, 2 threads": Contender(on(2))}, rounds=7)
    finally:
        torch.set_num_threads(threads)
