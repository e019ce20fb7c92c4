"""What all tests share: how far a result may be from its reference, and what they run in."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Read by OpenMP as torch is loaded. Tests run many tiny operations; where other processes keep the cores
# busy, threads that wait for each other in a loop make them fifty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
import triton_interpreter
from skip_policy import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  as plugins
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.acceleration import comparison
from vpdarts_fast.backends.triton.availability import interpreted
from vpdarts_fast.data import ImageData, load
from vpdarts_fast.evaluation import validation

TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
"""Greatest error of a result in a dtype, relative to the largest element of the expected tensor."""


LONGEST = (
    "test_cuda_emulation",
    "test_triton_compile",
    "test_perturbation",
    "test_transforms",
    "test_leave_one_out_fused",
    "test_graph_replays",
    "test_triton",
    "test_sanitizers",
    "test_perturbation_statistics",
    "test_cost_model",
    "test_search",
    "test_leave_one_out",
    "test_accelerate",
    "test_perturbation_models",
    "test_committee",
    "test_finalist_search",
    "test_cuda_build",
    "test_mixed_op",
    "test_work_counts",
    "test_fuzz",
    "test_cpu_ops",
    "test_analysis",
    "test_run_folder",
    "test_examples",
)
"""The files that take longest, by what cpu_times.py prints, longest first."""

OF_A_GPU = {"test_triton", "test_cuda_emulation", "test_triton_compile"}
"""Files whose float32 results do not depend on the instruction sets of the CPU."""

SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().split())
"""Tests that `make check` leaves out, as `file::function`; written by cpu_times.py."""


def pytest_configure() -> None:
    if interpreted() and importlib.util.find_spec("triton") is not None:
        triton_interpreter.make_faster()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Takes a third less while no garbage is looked for; nor is it looked for later in what is there then."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that nothing waits for them at the end; marks."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        if f"{item.path.name}::{getattr(item, 'originalname', item.name)}" in SLOW:
            item.add_marker("slow")
        callspec = getattr(item, "callspec", None)
        values = [] if callspec is None else list(callspec.params.values())
        if item.path.stem not in OF_A_GPU and any(value is torch.float32 for value in flattened(values)):
            item.add_marker("float32")


def flattened(values: Iterable[Any]) -> Iterator[Any]:
    """What lies in nested tuples and lists."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from flattened(value)
        else:
            yield value


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Tensor, Tensor], None]:
    """(actual, expected) -> None: same shape, and as close as the dtype of `actual` allows.

    `expected` is best computed in float64; errors are measured against its largest element, since a
    sum that cancels to nearly zero is as uncertain as its terms.
    """

    def check(actual: Tensor, expected: Tensor) -> None:
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        tolerance = TOLERANCES[actual.dtype] * max(scale, 1e-30)
        found, wanted = actual.double(), expected.double()
        if actual.shape != expected.shape or not ((found - wanted).abs() <= tolerance).all():
            # Says where and by how much. As it is called first it imports a second's worth of PyTorch.
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)

    return check


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as the tests' gain nothing from more, and lose time to hand-overs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calibrate_on_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """`recalibrated` is content with 25 images, so that tests need not evaluate hundreds."""
    monkeypatch.setattr(validation, "CALIBRATION_IMAGES", 25)


@pytest.fixture
def calibrate_on_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with 10, for models whose evaluation takes long."""
    monkeypatch.setattr(validation, "CALIBRATION_IMAGES", 10)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a small search."""
    monkeypatch.setattr("vpdarts_fast.search.running.draw_pictures", lambda folder: [])


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package tensorboard were not installed."""
    for module in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops that are called, but by `accelerate` as it compares."""
    made: list[str] = []
    for name in ("mixed_op", "mixed_cell", "masked_cell", "trained_residual_block", "residual_block"):
        monkeypatch.setattr(ops, name, _recording(name, getattr(ops, name), made))
    compare = comparison.compare

    def unseen(*args: Any) -> Any:
        before = len(made)
        outcome = compare(*args)
        del made[before:]
        return outcome

    monkeypatch.setattr(comparison, "compare", unseen)
    return made


def _recording(name: str, op: Callable[..., Any], made: list[str]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        made.append(name)
        return op(*args, **kwargs)

    return record
