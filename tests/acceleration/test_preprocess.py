"""What stands in front of the cells of a DARTS network: accelerated, it is trained and evaluated the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from acceleration_cases import CHANNELS, DTYPES, both, images, step
from closeness import STEPS, Results, Training, assert_close_to_truth, assert_trains_alike, clear_of_jumps
from supernets import FactorisedReduce, MixedOp, Style, darts_ops
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.acceleration import accelerate, restore
from vpdarts_fast.spaces.blocks import ReLUConvBN
from vpdarts_fast.spaces.darts.operations import FactorizedReduce


def between(channels_out: int, stride: int = 1, **options: Any) -> nn.Module:
    """As public code has it, a sequence of layers."""
    bias = options.pop("bias", False)
    conv = nn.Conv2d(CHANNELS, channels_out, 1, stride, bias=bias)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels_out, **options))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "sequence": lambda: between(5),
    "affine, with a bias": lambda: between(12, bias=True),
    "stride 2": lambda: between(5, 2),
    "without running statistics": lambda: between(5, track_running_stats=False),
    "average over all batches": lambda: between(5, momentum=None),
    "ours": lambda: ReLUConvBN(CHANNELS, 5, 1, 1, affine=False),
    "factorised reduce": lambda: FactorisedReduce(CHANNELS, Style()),
    "factorised reduce with biases": lambda: FactorisedReduce(CHANNELS, Style(affine=True, bias=True)),
    "our factorised reduce": lambda: FactorizedReduce(CHANNELS, 7, affine=False),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def pointwise(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every call of the op."""
    made: list[str] = []
    own = ops.relu_pointwise

    def recording(*args: Any, **options: Any) -> Tensor:
        made.append(options["backend"])
        return own(*args, **options)

    monkeypatch.setattr(ops, "relu_pointwise", recording)
    return made


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_trains_the_same(kind: str, dtype: torch.dtype, pointwise: list[str]) -> None:
    plain, fused = both(KINDS[kind](), dtype)
    pointwise.clear()
    trainings = [Training(module, step) for module in (plain, fused)]
    assert_trains_alike(*trainings, lambda seed: images(dtype, seed=seed))
    assert len(pointwise) == STEPS[dtype]


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluates_the_same(kind: str, dtype: torch.dtype, pointwise: list[str]) -> None:
    plain, fused = both(KINDS[kind](), dtype)
    training = Training(plain, step)
    for seed in range(3):
        training.results(images(dtype, seed=seed))
    plain.eval()
    fused.eval().load_state_dict(plain.state_dict())
    pointwise.clear()
    with torch.no_grad():
        out = fused(images(dtype))
    assert_close_to_truth({"out": out}, {"out": copy.deepcopy(plain).double()(images(dtype).double())})
    assert len(pointwise) == 1
    after = fused.state_dict()
    assert all(torch.equal(after[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["affine, with a bias", "factorised reduce"])
def test_second_derivatives_are_the_same(kind: str, dtype: torch.dtype) -> None:
    plain, fused = both(KINDS[kind](), dtype)

    def derivatives(module: nn.Module, x: Tensor) -> Results:
        leaves = {"x": x.clone().requires_grad_(), **dict(module.named_parameters())}
        out = module(leaves["x"])
        loss = (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view_as(out)).pow(3).mean()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
        return dict(zip(leaves, second, strict=True))

    truth = copy.deepcopy(plain).double()
    x, expected = clear_of_jumps(
        lambda seed: images(dtype, seed=seed), lambda x: derivatives(truth, x.double())
    )
    assert_close_to_truth(derivatives(fused, x), expected)


def test_sizes_and_channels_may_change() -> None:
    """A padded factorised reduce takes odd sizes, another one says what it said."""
    x = images(torch.float32, size=7)
    plain, fused = both(FactorizedReduce(CHANNELS, 6, affine=False), torch.float32)
    assert_close_to_truth({"out": fused(x)}, {"out": plain.double()(x.double())})
    plain, fused = both(FactorisedReduce(CHANNELS, Style()), torch.float32)
    for module in (plain, fused):
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            module(x)
    wider = between(4)
    accelerate(wider)
    assert isinstance(wider, nn.Sequential)
    wider[1], wider[2] = nn.Conv2d(CHANNELS, 9, 1), nn.BatchNorm2d(9)
    assert wider(x).shape == (3, 9, 7, 7)


def test_a_part_of_an_accelerated_sequence_runs() -> None:
    """A slice of it is made by its class."""
    sequence = between(4)
    assert len(accelerate(sequence).fused) == 1 and isinstance(sequence, nn.Sequential)
    x = images(torch.float32)
    torch.testing.assert_close(sequence[:2](x), sequence[1](x.relu()))
    restore(sequence[:2])
    restore(sequence)
    assert type(sequence) is nn.Sequential


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)],
        [nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)],
        [nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)],
        [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)],
        [nn.ReLU(), nn.Conv2d(8, 8, 1, padding=1), nn.BatchNorm2d(8)],
        [nn.ReLU(), nn.Conv2d(8, 8, 1, stride=3), nn.BatchNorm2d(8)],
        [nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)],
        [nn.ReLU(), nn.Conv2d(8, 8, 1)],
    ],
    ids=str,
)
def test_other_layers_are_not_listed(layers: list[nn.Module]) -> None:
    assert accelerate(nn.Sequential(*layers)).entries == ()


def test_what_belongs_to_a_mixed_operation_is_not_listed_by_itself() -> None:
    report = accelerate(nn.ModuleList([MixedOp(darts_ops(CHANNELS, 2, Style())), between(4)]))
    assert [(entry.name, entry.kind) for entry in report.fused] == [
        ("0", "mixed operation of 8, stride 2"),
        ("1", "ReLU, 1x1 convolution, batch norm"),
    ]
    wrapped = accelerate(nn.ModuleList([ReLUConvBN(4, 6, 1, 1, False), FactorizedReduce(4, 6, False)]))
    assert [(entry.name, entry.kind) for entry in wrapped.fused] == [
        ("0", "ReLU, 1x1 convolution, batch norm"),
        ("1", "factorised reduce"),
    ]


class Drawing(MixedOp):
    """Draws random numbers for what it returns."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        out: Tensor = super().forward(x, weights)
        return out * torch.rand(())


def test_what_belongs_to_a_mixed_operation_that_is_left_is_not_listed_either() -> None:
    report = accelerate(nn.ModuleList([Drawing(darts_ops(CHANNELS, 2, Style())), between(4)]))
    assert [(entry.name, entry.fused) for entry in report.entries] == [("0", False), ("1", True)]
