"""A step of each phase as the search takes it, C=16, 32x32, 64 images, optimisers and dropout included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from contenders import EAGER, OURS, Contender, Form, relative_error
from step import Step

N5 = pytest.param(5, marks=pytest.mark.full)


def verify(steps: Sequence[Step], phase: str, cells: int) -> None:
    """Loss and gradients against eager PyTorch's in float64.

    In float32 some values at ReLU's kink fall to the other side, so that gradients differ by much more than
    rounding: by 0.5 % at N=1 and 7 % at N=5, in eager PyTorch with channels last as well; in float64 the
    forms that can compute in it agree to 14 digits. So the yardstick is what float32 does to eager PyTorch.
    """
    loss, gradient = Step(EAGER, phase, cells).double().without_dropout()
    found = {step.form.name: step.without_dropout() for step in steps}
    errors = {name: relative_error(some, gradient) for name, (_, some) in found.items()}
    yardstick = max(error for name, error in errors.items() if name.startswith("eager"))
    for name, error in errors.items():
        assert found[name][0] == pytest.approx(loss, rel=1e-5), name
        assert error < 3 * max(yardstick, 1e-3), f"{name}: {errors}"


@pytest.mark.parametrize("cells", [1, N5], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("phase", ["weights", "alpha"])
def test_step(phase: str, cells: int, forms: Sequence[Form], compare: Callable[..., None]) -> None:
    steps = {form.name: Step(form, phase, cells) for form in forms}
    verify(list(steps.values()), phase, cells)
    compare(steps, rounds=7 if cells == 1 else 3)


@pytest.mark.full
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


CELLS = {
    "all ops": None,
    "six 3x3 convolutions": "333333",
    "the paper's cell": "333133",
    "three 3x3 convolutions, three skips": "313131",
    "six skips": "111111",
}
"""Name -> the one op of each edge whose alpha is not 0."""


@pytest.mark.full
@pytest.mark.parametrize("channels", [8, 16], ids=lambda c: f"C={c}")
def test_step_of_discrete_cells(channels: int, compare: Callable[..., None]) -> None:
    """Ours at N=5, the weights' step: what has alpha 0 costs nothing."""
    steps = {}
    for name, choices in CELLS.items():
        step = Step(OURS, "weights", 5, channels=channels)
        if choices is not None:
            with torch.no_grad():
                step.alpha.copy_(torch.eye(5)[[int(op) for op in choices]])
        steps[name] = step
    compare(steps, rounds=5)
