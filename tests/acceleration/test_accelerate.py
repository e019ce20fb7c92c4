"""`accelerate` changes how a supernet computes, and not what: both families, every variation, trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import (
    CHANNELS,
    DTYPES,
    Mixture,
    assert_trains_the_same,
    both,
    images,
    is_weight,
    softmax,
    step,
    supernet_images,
    unrolled_step,
)
from closeness import STEPS, Results, Training, assert_close_to_truth, assert_trains_alike, clear_of_jumps
from supernets import (
    AuxiliaryMixedOp,
    Cell,
    MixedOp,
    NewZero,
    NumberedMixedOp,
    OtherMethodMixedOp,
    PartialCell,
    PartialMixedOp,
    Residual,
    SkippingCell,
    SkippingMixedOp,
    Style,
    darts_ops,
)
from torch import Tensor, nn
from whole_supernets import DartsSupernet, EdgesSupernet

from vpdarts_fast.acceleration import accelerate

OTHER = {torch.float32: torch.float64, torch.float64: torch.float32}

STYLES = {
    "darts": Style(),
    "affine": Style(affine=True),
    "untracked": Style(track=False),
    "bias": Style(bias=True),
    "cumulative": Style(momentum=None),
    "bare pools": Style(pool_norm=False, padded_reduce=True),
}


WEIGHTS: dict[str, Callable[[Tensor], Any]] = {
    "another dtype": lambda alpha: softmax(alpha).to(OTHER[alpha.dtype]),
    "softmax": softmax,
    "raw": lambda alpha: alpha,
    "list of tensors": lambda alpha: list(softmax(alpha).unbind()),
    "numbers": lambda alpha: [float(weight) for weight in softmax(alpha).detach()],
    "one-hot": lambda alpha: F.one_hot(alpha.argmax(), len(alpha)).to(alpha) - alpha.detach() + alpha,
    "zeros": lambda alpha: softmax(alpha) * (torch.arange(len(alpha)) % 2 == 0),
    "gumbel": lambda alpha: softmax((alpha + torch.linspace(0, 2, len(alpha)).to(alpha)) / 0.5),
    "none": lambda alpha: None,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_mixed_ops_of_any_style_train_the_same(
    style: Style, stride: int, dtype: torch.dtype, calls: list[str]
) -> None:
    plain, fused = both(MixedOp(darts_ops(CHANNELS, stride, style)), dtype)
    alpha = torch.randn(8, dtype=dtype)
    assert_trains_the_same(plain, fused, alpha, softmax)
    assert calls == ["mixed_op"] * STEPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_mixed_ops_take_any_weights(weights: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    plain, fused = both(MixedOp(darts_ops(CHANNELS, 1, Style())), dtype)
    alpha = torch.randn(8, dtype=dtype)
    assert_trains_the_same(plain, fused, alpha, weights)


MIXED_OPS: dict[str, Callable[[int], nn.Module]] = {
    "children": lambda stride: NumberedMixedOp(darts_ops(CHANNELS, stride, Style())),
    "skipping": lambda stride: SkippingMixedOp(darts_ops(CHANNELS, stride, Style())),
    "partial": lambda stride: PartialMixedOp(darts_ops(CHANNELS // 4, stride, Style()), 4),
    "auxiliary": lambda stride: AuxiliaryMixedOp(
        darts_ops(CHANNELS, stride, Style()), Style().skip(CHANNELS, stride)
    ),
    "other method": lambda stride: OtherMethodMixedOp(darts_ops(CHANNELS, stride, Style())),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", MIXED_OPS)
@pytest.mark.parametrize("weights", ["softmax", "zeros"])
def test_mixed_ops_of_any_kind_train_the_same(
    kind: str, stride: int, weights: str, dtype: torch.dtype, calls: list[str]
) -> None:
    plain, fused = both(MIXED_OPS[kind](stride), dtype)
    alpha = torch.randn(8, dtype=dtype)
    call = "forward_darts" if kind == "other method" else "__call__"
    assert_trains_the_same(plain, fused, alpha, WEIGHTS[weights], call)
    assert calls == ["mixed_op"] * STEPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("weights", ["softmax", "zeros"])
def test_cells_of_any_style_train_the_same(
    style: Style, weights: str, dtype: torch.dtype, calls: list[str]
) -> None:
    plain, fused = both(Cell(CHANNELS, style), dtype)
    alpha = torch.randn(6, 5, dtype=dtype)
    rows = (lambda a: softmax(a)) if weights == "softmax" else lambda a: softmax(a) * (torch.arange(5) != 2)
    assert_trains_the_same(plain, fused, alpha, rows)
    assert calls == (["mixed_op"] * 6 if style.affine else ["mixed_cell"]) * STEPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["softmax", "zeros"])
@pytest.mark.parametrize("affine", [False, True])
def test_cells_of_partial_channels_train_the_same(
    affine: bool, weights: str, dtype: torch.dtype, calls: list[str]
) -> None:
    plain, fused = both(PartialCell(CHANNELS, Style(affine=affine)), dtype)
    alpha = torch.randn(6, 5, dtype=dtype)
    mask = torch.arange(5) != 2 if weights == "zeros" else torch.ones(5)
    assert_trains_the_same(plain, fused, alpha, lambda a: softmax(a) * mask)
    as_cells = not affine and weights != "zeros"  # which are skipped
    assert calls == ["mixed_cell" if as_cells else "mixed_op"] * 6 * STEPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_factorised_reduces_of_both_layouts_and_zeros_of_any_kind_train_the_same(
    bias: bool, stride: int, dtype: torch.dtype, calls: list[str]
) -> None:
    """In float64 the zeros are float32."""
    ops = darts_ops(CHANNELS, stride, Style(bias=bias, padded_reduce=True))
    plain, fused = both(MixedOp([NewZero(stride), *ops[1:]]), dtype)
    assert "as it is" not in str(accelerate(copy.deepcopy(fused)))
    alpha = torch.randn(8, dtype=dtype)
    assert_trains_the_same(plain, fused, alpha, softmax)
    assert calls == ["mixed_op"] * STEPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("zeros", "expected"),
    [((), {"mixed_cell"}), ((2,), {"mixed_cell", "mixed_op"}), (range(5), set())],
    ids=["none", "one op", "a whole edge"],
)
def test_cells_that_skip_zeros_train_the_same(
    zeros: Iterable[int], expected: set[str], dtype: torch.dtype, calls: list[str]
) -> None:
    """The edge that skips one as `mixed_op`, the others as cells of two nodes.

    Also where an edge in the middle has nothing to run, and the cell is left to its own code.
    """
    plain, fused = both(SkippingCell(CHANNELS, Style(bias=True)), dtype)
    alpha = torch.randn(6, 5, dtype=dtype)
    mask = torch.ones(6, 5, dtype=dtype)
    mask[3, list(zeros)] = 0
    assert_trains_the_same(plain, fused, alpha, lambda a: softmax(a) * mask)
    assert set(calls) == expected


def test_the_rows_of_a_cells_weights_are_in_the_order_of_its_sorted_keys() -> None:
    """With eleven nodes it is not that of the nodes."""
    plain, fused = both(Cell(2, Style(), max_nodes=12), torch.float64)
    alpha = torch.randn(66, 5, dtype=torch.float64)
    x = images(torch.float64, 2)
    torch.testing.assert_close(fused(x, alpha), plain(x, alpha), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_blocks_train_the_same(dtype: torch.dtype, calls: list[str]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual(CHANNELS)

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            out: Tensor = self.block(x) * weights
            return out

    plain, fused = both(Scaled(), dtype)
    alpha = torch.randn((), dtype=dtype)
    assert_trains_the_same(plain, fused, alpha, lambda a: a)
    assert calls == ["trained_residual_block"] * STEPS[dtype]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation_uses_and_keeps_the_running_statistics(
    dtype: torch.dtype, gradients: bool, calls: list[str]
) -> None:
    plain, fused = both(MixedOp(darts_ops(CHANNELS, 1, Style(affine=True, bias=True))), dtype)
    alpha = torch.randn(8, dtype=dtype)
    training = Training(Mixture(plain, alpha, softmax), step)
    for seed in range(5):
        training.results(images(dtype, seed=seed))
    plain.eval()
    fused.eval().load_state_dict(plain.state_dict())
    truth = copy.deepcopy(plain).double()
    with torch.set_grad_enabled(gradients):
        out = fused(images(dtype), alpha)
    assert out.dtype == dtype and calls == ([] if gradients else ["mixed_op"])
    assert_close_to_truth({"out": out}, {"out": truth(images(dtype).double(), alpha.double())})
    after = fused.state_dict()
    assert all(torch.equal(after[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("supernet", [DartsSupernet, EdgesSupernet])
def test_whole_supernets_search_the_same(supernet: type[nn.Module], dtype: torch.dtype) -> None:
    trainings = [Training(model, unrolled_step, is_weight) for model in both(supernet(), dtype)]
    assert_trains_alike(*trainings, lambda seed: supernet_images(dtype, seed))


SECOND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixed op": (lambda: MixedOp(darts_ops(CHANNELS, 2, Style(affine=True))), (8,)),
    "cell": (lambda: Cell(CHANNELS, Style()), (6, 5)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SECOND)
def test_second_derivatives_are_the_same(kind: str, dtype: torch.dtype, calls: list[str]) -> None:
    """Products with the Hessian by all parameters, the input and the alphas, which depend on it here."""
    make, shape = SECOND[kind]
    plain, fused = both(make(), dtype)

    def derivatives(module: nn.Module, x: Tensor) -> Results:
        x = x.clone().requires_grad_()
        alpha = torch.linspace(-1, 1, math.prod(shape), dtype=x.dtype).view(shape).requires_grad_()
        leaves = {"x": x, "alpha": alpha, **dict(module.named_parameters())}
        loss = module(x, softmax(alpha * x.mean())).square().mean()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
        return dict(zip(leaves, second, strict=True))

    truth = copy.deepcopy(plain).double()
    x, expected = clear_of_jumps(
        lambda seed: images(dtype, seed=seed), lambda x: derivatives(truth, x.double())
    )
    assert_close_to_truth(derivatives(fused, x), expected)
    assert set(calls) == {"mixed_op" if kind == "mixed op" else "mixed_cell"}
