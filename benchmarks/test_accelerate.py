"""Supernets of other code bases, as in `examples/`, before and after `accelerate`: C=16, 32x32, 64 images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter

import pytest
from contenders import EAGER, FORMS, OURS, Contender, relative_error
from example_step import EXAMPLE_FORMS, ExampleStep, compiled_parts
from memory import NotMeasurable, measure
from pytest_benchmark.fixture import BenchmarkFixture

LAYERS = [3, 8]


def verify(name: str, size: int) -> None:
    """Gradients of a few images against eager PyTorch's in float64; as far off as eager PyTorch in float32.

    Compiled forms are compiled for one batch size only; `first_losses` covers them.
    """
    expected = ExampleStep(name, EAGER, size, batch=8).double()
    loss, gradient = expected(), expected.gradient()
    errors = {}
    for form in EXAMPLE_FORMS:
        if not form.compiled:
            step = ExampleStep(name, form, size, batch=8)
            assert step() == pytest.approx(loss, rel=1e-5), form.name
            errors[form.name] = relative_error(step.gradient(), gradient)
    yardstick = max(error for form, error in errors.items() if form.startswith("eager"))
    assert max(errors.values()) < 3 * max(yardstick, 1e-3), errors


def first_losses(steps: dict[str, ExampleStep]) -> dict[str, str]:
    """Takes a step in every form, all to the same loss; returns notes on how long compiling took."""
    losses, notes = {}, {}
    for name, step in steps.items():
        started = perf_counter()
        losses[name] = step()
        if step.form.compiled:
            notes[name] = f"the first step, with compiling, {perf_counter() - started:.0f} s"
    for name, loss in losses.items():
        assert loss == pytest.approx(losses[EAGER.name], rel=1e-4), name
    return notes


def compare_steps(name: str, size: int, compare: Callable[..., None], compiled: bool, rounds: int) -> None:
    verify(name, size)
    forms = [form for form in EXAMPLE_FORMS if compiled or not form.compiled]
    steps = {}
    for form in forms:
        step = ExampleStep(name, form, size)
        parts = {type(part).__name__ for part in compiled_parts(name, step.network)}
        steps[f"{form.name}, each {', '.join(parts)}" if form.compiled else form.name] = step
    notes = first_losses(steps)
    compare({n: Contender(step, note=notes.get(n, "")) for n, step in steps.items()}, rounds=rounds)


def test_nas_bench_201_step(full: bool, compare: Callable[..., None]) -> None:
    """It takes minutes to compile, several times as long as our own supernet: with --full only."""
    compare_steps("nas_bench_201", 1, compare, compiled=full, rounds=7)


@pytest.mark.full
@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: f"layers={layers}")
def test_darts_step(layers: int, compare: Callable[..., None]) -> None:
    compare_steps("darts", layers, compare, compiled=True, rounds=5)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: f"layers={layers}")
def test_darts_peak_memory(layers: int, benchmark: BenchmarkFixture) -> None:
    """The row times the whole measurement of ours; the peaks are in its extra_info."""
    peaks = {}
    try:
        for form in FORMS:
            if not form.compiled and not form.fused:
                peaks[form.name] = measure(form.name, "darts", layers)
        peaks[OURS.name] = benchmark.pedantic(measure, (OURS.name, "darts", layers), rounds=1)
    except NotMeasurable as reason:
        pytest.skip(str(reason))
    own = peaks[OURS.name]
    benchmark.extra_info["peaks"] = peaks
    benchmark.extra_info["notes"] = {
        name: f"ours is {own / peak:.2f} of it" for name, peak in peaks.items() if name != OURS.name
    }
    benchmark.extra_info["ratios"] = {name: peak / own for name, peak in peaks.items() if name != OURS.name}
