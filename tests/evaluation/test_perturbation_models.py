"""Leave-one-out evaluation of supernets that are written otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import assert_same
from perturbation_cases import (
    GumbelSupernet,
    accelerated,
    assert_all_same,
    batches,
    every_perturbation,
    specified,
    trained,
)
from supernets import (
    AuxiliaryMixedOp,
    DropPathMixedOp,
    MixedOp,
    NumberedMixedOp,
    OtherMethodMixedOp,
    PartialMixedOp,
    SkippingMixedOp,
    Zero,
)
from torch import Tensor, nn
from whole_supernets import DartsSupernet

from vpdarts_fast import UserError, leave_one_out
from vpdarts_fast.evaluation.perturbation import Perturbation
from vpdarts_fast.evaluation.perturbation.draws import transformable_draws

pytestmark = pytest.mark.usefixtures("one_thread", "calibrate_on_ten")


class Block(nn.Module):
    """A node: one mixed operation, called with the sum of the nodes before."""

    def __init__(self, mixed_op: nn.Module) -> None:
        super().__init__()
        self.mixed_op = mixed_op

    def forward(self, nodes: list[Tensor], weights: Tensor) -> Tensor:
        out: Tensor = self.mixed_op(torch.stack(nodes).sum(0), weights)
        return out


class BlocksSupernet(DartsSupernet):
    """Every mixed operation in a block of its own."""

    def __init__(self) -> None:
        super().__init__(steps=1)
        for cell in self.cells:
            cell._ops = nn.ModuleList(map(Block, cell._ops))

    def forward(self, images: Tensor) -> Any:
        for cell in self.cells:
            for block in cell._ops:
                block.forward = lambda x, weights, block=block: Block.forward(block, [x], weights)
        return super().forward(images)


@every_perturbation
def test_mixed_operations_in_blocks_of_their_own(perturbation: Perturbation) -> None:
    model, some = trained(BlocksSupernet), batches(7)
    result = leave_one_out(model, some, batch_norm="running", perturbation=perturbation)
    assert result.edges["normal"] == tuple(f"_ops.{e}.mixed_op" for e in range(2))
    assert_same(result.cells["normal"], specified(model, some, perturbation, False))


@pytest.mark.parametrize(
    "mixed_op",
    [
        NumberedMixedOp,
        SkippingMixedOp,
        DropPathMixedOp,
        lambda ops: PartialMixedOp(ops, 2),
        lambda ops: AuxiliaryMixedOp(ops, nn.AvgPool2d(ops[0].stride, ops[0].stride)),
        lambda ops: DirectMixedOp(ops),
        lambda ops: DartsMixedOp(ops),
        lambda ops: KeywordMixedOp(ops),
    ],
    ids=["numbered", "skipping", "drop_path", "partial", "auxiliary", "direct", "other_method", "keyword"],
)
def test_mixed_operations(mixed_op: Callable[[list[nn.Module]], nn.Module], request: Any) -> None:
    part = 2 if "partial" in request.node.name else 1
    model, some = trained(lambda: DartsSupernet(mixed_op=mixed_op, part=part, steps=1)), batches(7)
    fast = leave_one_out(accelerated(model), some, batch_norm="batch")
    assert fast.batched, fast.remark
    assert_all_same(fast, leave_one_out(model, some, batch_norm="batch"))


class DirectMixedOp(MixedOp):
    """Its forward is called, and not the module."""

    def __call__(self, x: Tensor, weights: Any) -> Tensor:
        return self.forward(x, weights)


class DartsMixedOp(OtherMethodMixedOp):
    """It is called by a method of its own."""

    def __call__(self, x: Tensor, weights: Any) -> Tensor:
        return self.forward_darts(x, weights)


class KeywordMixedOp(MixedOp):
    """Its weights come by keyword."""

    def __call__(self, x: Tensor, weights: Any) -> Any:
        return super().__call__(x, weights=weights)


class NoisySupernet(DartsSupernet):
    """The first operation of each edge adds noise."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__(steps=steps)
        for module in self.modules():
            if isinstance(module, MixedOp):
                stride = module._ops[0].stride
                module._ops[0] = nn.Sequential(nn.AvgPool2d(stride, stride), Noise())


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape[1:]).to(x)


class ListSupernet(DartsSupernet):
    def weights(self, reduction: bool) -> Any:
        return [list(row) for row in super().weights(reduction)]


class ColumnSupernet(DartsSupernet):
    def weights(self, reduction: bool) -> Any:
        return super().weights(reduction)[:, :, None, None]


class OneHotSupernet(DartsSupernet):
    def weights(self, reduction: bool) -> Any:
        return F.one_hot(self.alphas_normal.argmax(-1), 5).to(self.alphas_normal)


class DirichletSupernet(DartsSupernet):
    """Its weights are drawn in every forward pass (DrNAS)."""

    def weights(self, reduction: bool) -> Any:
        alphas = self.alphas_reduce if reduction else self.alphas_normal
        return torch.distributions.Dirichlet(F.elu(alphas) + 1).rsample()


@every_perturbation
@pytest.mark.parametrize(
    "supernet",
    [ListSupernet, ColumnSupernet, GumbelSupernet, OneHotSupernet, NoisySupernet, DirichletSupernet],
)
def test_weights_and_random_numbers(supernet: type[DartsSupernet], perturbation: Perturbation) -> None:
    model, some = trained(lambda: supernet(steps=1)), batches(4, 3)
    state = torch.get_rng_state()
    plain = leave_one_out(model, some, perturbation=perturbation)
    assert torch.equal(torch.get_rng_state(), state)
    fast = leave_one_out(accelerated(model), some, perturbation=perturbation)
    assert torch.equal(torch.get_rng_state(), state)
    assert fast.batched, fast.remark
    assert_all_same(fast, plain)


def test_dirichlet_draws_are_what_they_were_before_and_after() -> None:
    """Also in other threads while an evaluation lasts: with gradients they go PyTorch's own way."""
    concentration = torch.rand(6, 5, dtype=torch.float64).add(0.5).requires_grad_()

    def draw() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        drawn = torch.distributions.Dirichlet(concentration).rsample()
        return drawn.detach(), torch.autograd.grad(drawn[:, 0].sum(), concentration)[0]

    own = torch.distributions.dirichlet._Dirichlet
    before = draw()
    with transformable_draws(), transformable_draws():
        within = draw()
        with torch.no_grad():
            torch.manual_seed(1)
            assert torch.equal(torch.distributions.Dirichlet(concentration).rsample(), before[0])
    assert torch.distributions.dirichlet._Dirichlet is own
    for found in (within, draw()):
        assert all(map(torch.equal, found, before))


class Fading(Zero):
    """It is zero, or nearly so."""

    rest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.rest == 0 else x.mul(self.rest)


class UnevenSupernet(DartsSupernet):
    """Two operations of the wider one of its two normal cells are unknown, of the same classes."""

    def __init__(self) -> None:
        super().__init__(layers=4, steps=1)
        for cell in (self.cells[0], self.cells[3]):
            for mixed_op in cell._ops:
                mixed_op._ops[0] = Fading(1)
        for mixed_op in self.cells[3]._ops:
            mixed_op._ops[0].rest = 0.5
            mixed_op._ops[3].layers.append(nn.Tanh())


@every_perturbation
def test_cells_that_are_alike_but_recognised_differently(perturbation: Perturbation) -> None:
    model, some = trained(UnevenSupernet), batches(7, 4)
    plain = leave_one_out(model, some, batch_norm="running", perturbation=perturbation)
    assert_same(plain.cells["normal"], specified(model, some, perturbation, False))
    fast = leave_one_out(accelerated(model), some, batch_norm="running", perturbation=perturbation)
    assert fast.batched, fast.remark
    assert_all_same(fast, plain)


def test_cells_with_another_class_of_operation_differ() -> None:
    model = trained(UnevenSupernet)
    model.cells[3]._ops[1]._ops[3] = nn.Sequential(model.cells[3]._ops[1]._ops[3])
    with pytest.raises(
        UserError, match=r"the normal cells differ in edges or operations: cells.0 and cells.3"
    ):
        leave_one_out(model, batches(3))


def test_why_a_cell_has_fewer_mixed_operations_is_said() -> None:
    model = trained(UnevenSupernet)
    mixed_op = model.cells[3]._ops[1]
    mixed_op._ops[4] = nn.Sequential(nn.ReLU(inplace=True), mixed_op._ops[4])
    with pytest.raises(UserError, match=r"cells.3\n  not recognised: cells.3._ops.1 .* changes its input"):
        leave_one_out(model, batches(3))


class DecidingSupernet(DartsSupernet):
    """What it does depends on a value that differs between variants."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().forward(images)
        return features, logits if logits[0, 0].item() > 0 else 2 * logits


def test_a_model_that_cannot_be_batched_runs_in_a_loop() -> None:
    model, some = trained(lambda: DecidingSupernet(steps=1)), batches(7, 5)
    fast = leave_one_out(accelerated(model), some)
    assert not fast.batched
    assert fast.remark.startswith("torch.vmap: RuntimeError: vmap: ")
    assert_all_same(fast, leave_one_out(model, some))


def test_logits_from_what_the_model_returns() -> None:
    class Dictionary(DartsSupernet):
        def forward(self, images: Tensor) -> Any:
            return {"logits": super().forward(images)[1]}

    some = batches(7)
    expected = leave_one_out(trained(lambda: DartsSupernet(steps=1)), some)
    model = accelerated(trained(lambda: Dictionary(steps=1)))
    assert_all_same(leave_one_out(model, some, logits=lambda out: out["logits"]), expected)
    with pytest.raises(UserError, match="must return logits"):
        leave_one_out(model, some)
