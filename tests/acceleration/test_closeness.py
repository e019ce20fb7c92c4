"""The test of the float32 tests: a reordered computation passes, a small error does not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import (
    CHANNELS,
    Mixture,
    images,
    is_weight,
    softmax,
    step,
    supernet_images,
    unrolled_step,
)
from closeness import (
    CLEARANCE,
    Jumps,
    Results,
    Training,
    assert_close_to_truth,
    assert_trains_alike,
    clear_of_jumps,
)
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn
from whole_supernets import DartsSupernet, EdgesSupernet

pytestmark = pytest.mark.float32


def mixed_op(stride: int, style: Style) -> Training:
    return Training(Mixture(MixedOp(darts_ops(CHANNELS, stride, style)), torch.randn(8), softmax), step)


TRAININGS: dict[str, Callable[[], Training]] = {
    "mixed op": partial(mixed_op, 1, Style()),
    "affine mixed op of stride 2": partial(mixed_op, 2, Style(affine=True)),
    "cell": lambda: Training(Mixture(Cell(CHANNELS, Style(bias=True)), torch.randn(6, 5), softmax), step),
    "residual block": lambda: Training(Residual(CHANNELS), step),
    "DARTS": lambda: Training(DartsSupernet(), unrolled_step, is_weight),
    "NAS-Bench-201": lambda: Training(EdgesSupernet(), unrolled_step, is_weight),
}
every_training = pytest.mark.parametrize("kind", TRAININGS)


def training(kind: str) -> tuple[Training, Callable[[int], Tensor]]:
    """In float32, and its images by a seed."""
    torch.manual_seed(0)
    made = TRAININGS[kind]()
    for parameter in made.module.parameters():
        nn.init.normal_(parameter, std=0.5)
    draw = supernet_images if made.step is unrolled_step else lambda dtype, seed: images(dtype, seed=seed)
    return made, partial(draw, torch.float32)


def channels_last(made: Training) -> None:
    made.module.to(memory_format=torch.channels_last)
    made.step = lambda *args, step=made.step: step(
        *args[:2], args[2].contiguous(memory_format=torch.channels_last)
    )


def on_three_threads(made: Training) -> None:
    def run(*args: Any, step: Any = made.step) -> Results:
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            results: Results = step(*args)
        finally:
            torch.set_num_threads(before)
        return results

    made.step = run


def without_onednn(made: Training) -> None:
    def run(*args: Any, step: Any = made.step) -> Results:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of a setting that is left alone
            with torch.backends.mkldnn.flags(enabled=False):
                results: Results = step(*args)
        return results

    made.step = run


@every_training
@pytest.mark.parametrize("change", [channels_last, on_three_threads, without_onednn])
def test_the_plain_module_passes_however_it_is_run(kind: str, change: Callable[[Training], None]) -> None:
    plain, draw = training(kind)
    other = copy.deepcopy(plain)
    change(other)
    assert_trains_alike(plain, other, draw, steps=1)


@every_training
def test_an_error_of_a_thousandth_in_any_gradient_is_found(kind: str) -> None:
    plain, draw = training(kind)
    truth = copy.deepcopy(plain)
    truth.module.double()
    start = {name: tensor.clone() for name, tensor in truth.module.state_dict().items()}

    def true_results(drawn: Tensor) -> Results:
        truth.load(start)
        return truth.results(drawn.double())

    drawn, expected = clear_of_jumps(draw, true_results)
    results = plain.results(drawn)
    assert_close_to_truth(results, expected)
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    names = [name for name in results if "gradient" in name or name == "x"]
    names = [name for name in names if float(expected[name].abs().max()) > 1e-10 * largest]
    assert len(names) >= len(list(plain.module.parameters())) - 20
    for name in names:
        with pytest.raises(AssertionError, match=f"^{name}: off by"):
            assert_close_to_truth(results | {name: results[name] * 1.001}, expected)


def test_a_gradient_that_should_be_zero_is_held_against_the_others() -> None:
    """That of a bias before a batch norm is rounding; an error as large as the rest is found."""
    truth = {"weight": torch.tensor([1.0, 2.0]).double(), "bias": torch.tensor([3e-17]).double()}
    results = {name: tensor.float() for name, tensor in truth.items()}
    assert_close_to_truth(results | {"bias": torch.tensor([1e-6])}, truth)
    with pytest.raises(AssertionError, match="bias: off by"):
        assert_close_to_truth(results | {"bias": torch.tensor([1e-3])}, truth)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "not the same tensors"),
        ({"weight": torch.zeros(3)}, r"weight: \[3\], not \[2\]"),
        ({"weight": torch.tensor([1.0, torch.nan])}, "weight: off by nan"),
    ],
    ids=["missing", "shape", "NaN"],
)
def test_what_is_missing_or_of_another_shape_or_not_finite_is_found(
    wrong: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close_to_truth(wrong, {"weight": torch.tensor([1.0, 2.0]).double()})


def test_counts_are_equal() -> None:
    with pytest.raises(AssertionError, match="count"):
        assert_close_to_truth({"count": torch.tensor(3)}, {"count": torch.tensor(4)})


def computed(x: Tensor) -> Tensor:
    """The same, as the result of an operation that autograd follows."""
    return x.requires_grad_() * 1


@pytest.mark.parametrize("inplace", [False, True])
def test_a_relu_near_its_jump_is_found(inplace: bool) -> None:
    with Jumps() as jumps:
        F.relu(computed(torch.tensor([2.0, 0.0, -1.0])), inplace)
    assert jumps.clearance == 0.5, "an exact zero is none"
    with Jumps() as jumps:
        F.relu(torch.tensor([2.0, -1e-6, 1.0]))
    assert jumps.clearance == torch.inf, "nothing has rounded it"
    with Jumps() as jumps:
        F.relu(computed(torch.tensor([2.0, -1e-6, 1.0])), inplace)
    assert jumps.clearance < CLEARANCE


@pytest.mark.parametrize("stride", [1, 2, None])
def test_a_maximum_that_is_nearly_shared_is_found(stride: int | None) -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8) - 20
    pools: list[nn.Module] = [
        nn.MaxPool2d(3, stride, 1),
        nn.MaxPool2d((2, 3), stride),
        nn.MaxPool2d(2, stride),
    ]
    for pool in pools:
        near = x.detach().clone()
        near[0, 0, :2, 0] = near[0, 0, 0, 1] = 1e6  # exact ties are none
        with Jumps() as jumps:
            pool(computed(x))
            pool(computed(near))
        assert jumps.clearance > 1e-7 and torch.isfinite(torch.tensor(jumps.clearance))
        near = near.detach().clone()
        near[0, 0, 1, 1] = 1e6 + 0.5
        with Jumps() as jumps:
            pool(computed(near.detach()))
        assert 0 < jumps.clearance < 1e-6


def test_draws_near_a_jump_are_drawn_again() -> None:
    seeds = []

    def draw(seed: int) -> Tensor:
        seeds.append(seed)
        return torch.tensor([1.0, 1e-9 if seed < 4 else -1e-2])

    drawn, truth = clear_of_jumps(draw, lambda x: {"out": F.relu(computed(x.double()))})
    assert seeds == [1, 2, 3, 4] and torch.equal(truth["out"], F.relu(drawn.double()))
    with pytest.raises(AssertionError, match="every draw came near a jump"):
        clear_of_jumps(lambda seed: torch.tensor([1.0, 1e-9]), lambda x: {"out": F.relu(computed(x))})
