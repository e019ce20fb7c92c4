"""Leave-one-out evaluation, fused: it computes what the plain one does, in the memory it is given."""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import (
    MODES,
    assert_same,
    drop_statistics,
    every_mode,
    fused_variants,
    make_alpha,
    make_batches,
    make_supernet,
)
from op_contract import half_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpdarts_fast import data, ops
from vpdarts_fast.backends.registry import serving
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, distinct_variants, leave_one_out, removals
from vpdarts_fast.runtime.precision import bfloat16_products
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# On a trained supernet -------------------------------------------------------------------------------------


@cache
def trained(cells: int) -> tuple[Supernet, Tensor, list[Batch]]:
    """A supernet after a few steps on the digits, its alpha, and validation batches, the last one smaller.

    Trained in float64, so that every machine comes to the same, and then rounded to float32.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(8, cells, 10, fused=True).double()
        alpha = supernet.new_alpha().requires_grad_()
        training, validation = data.split_halves(data.load("digits"), seed=0)
        weights = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        architecture = torch.optim.Adam([alpha], lr=0.02)
        for indices in torch.randperm(len(training))[:640].view(20, 32):
            images, labels = training.batch(indices)
            F.cross_entropy(supernet(images.double(), alpha), labels).backward()  # type: ignore[no-untyped-call]
            for optimizer in (weights, architecture):
                optimizer.step()
                optimizer.zero_grad()
    batches = [validation.batch(indices) for indices in torch.tensor_split(torch.arange(20), (12,))]
    return supernet.float(), alpha.detach().float(), batches


@pytest.mark.float32
@pytest.mark.parametrize(("cells", "mode"), [*product([1], MODES), (2, "running"), (2, "variant")])
def test_fused_is_plain(cells: int, mode: BatchNorm) -> None:
    supernet, alpha, batches = trained(cells)
    fused = leave_one_out(supernet, batches, alpha, batch_norm=mode)
    truth, exact = copy.deepcopy(supernet).double(), [(images.double(), labels) for images, labels in batches]
    plain = leave_one_out(truth, exact, alpha.double(), batch_norm=mode, batched=False)
    assert plain.base_accuracy > 20, "the supernet has learned too little for this test to say much"
    assert float(plain.loss.max() - plain.loss.min()) > 0.05, "the ops should matter"
    assert_same(fused, plain, rtol=1e-5, turned=2)


@pytest.mark.float32
@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("budget", [None, 1 << 22])
@pytest.mark.parametrize("cells", [1, 2])
def test_every_image_is_predicted_alike(cells: int, mode: BatchNorm, budget: int | None) -> None:
    supernet, alpha, batches = trained(cells)
    (images, _), *_ = batches
    network = copy.deepcopy(supernet).eval()
    if mode == "batch":
        drop_statistics(network)
    truth = copy.deepcopy(network).double()
    tables, _ = distinct_variants(alpha, removals(alpha))
    with torch.no_grad():
        with truth.plain():
            plain = torch.stack([truth(images.double(), table) for table in tables.double()])
        fused = torch.full_like(plain, torch.nan, dtype=torch.float32)
        for variants, some, logits in fused_variants(mode, network, batches, tables, budget)(images):
            assert fused[variants, some].isnan().all(), "evaluated twice"
            fused[variants, some] = logits
    assert not fused.isnan().any(), "not evaluated"
    bound = 1e-5 * float(plain.abs().max())
    torch.testing.assert_close(fused.double(), plain, rtol=0, atol=bound)
    first, second = plain.topk(2, dim=2).values.unbind(2)
    apart = first - second > 2 * bound
    assert apart.double().mean() > 0.999
    assert torch.equal(fused.argmax(2)[apart], plain.argmax(2)[apart])


# On small ones ---------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(
    "alpha",
    [torch.zeros(6, 5), torch.full((6, 5), 0.2), torch.tensor([0.2, 0, 0, 0.7, 0]).repeat(6, 1)],
    ids=["all zero", "equal", "one op each"],
)
def test_special_alphas(mode: BatchNorm, alpha: Tensor) -> None:
    supernet, batches = make_supernet(), make_batches(20, 7)
    fused, plain = (
        leave_one_out(supernet, batches, alpha.double(), batch_norm=mode, batched=fused)
        for fused in (True, False)
    )
    assert_same(fused, plain)


@every_mode
@pytest.mark.parametrize("image", [(15, 17), (5, 4), (1, 1), (1, 9)])
def test_image_sizes(mode: BatchNorm, image: tuple[int, int]) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(8, 5, image=image), make_alpha()
    fused, plain = (
        leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=fused) for fused in (True, False)
    )
    # statistics of a few values each (1x1 images) blow rounding errors up
    assert_same(fused, plain, rtol=1e-6)


# Memory ----------------------------------------------------------------------------------------------------


NODE_VALUES = {
    "fixed": serving("masked_cell", [torch.zeros(1, dtype=torch.float64)]).node_values["masked_cell"],
    "batch": serving("mixed_cell", [torch.zeros(1, dtype=torch.float64)]).node_values["mixed_cell"],
}
"""Of the backend that serves float64."""


@every_mode
def test_any_memory_budget_gives_the_same(mode: BatchNorm) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(4, 3), make_alpha()
    expected = leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=False)
    estimates = mode in ("batch", "variant")  # statistics of every variant
    per_image = NODE_VALUES["batch" if estimates else "fixed"] * 2 * 6 * 6 * 8
    least = per_image * (4 if estimates else 1)  # one variant, of a whole batch or of an image
    # and around all 25 variants of an image and of three, no limit
    for budget in (least, 25 * per_image - 1, 25 * per_image, 75 * per_image, 1 << 40):
        result = leave_one_out(supernet, batches, alpha, batch_norm=mode, memory_budget=budget)
        assert_same(result, expected)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The peak of the bytes in storages that torch operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("mode", "mebibytes", "bfloat16"),
    [
        # the least there is with batch statistics, one variant of the whole batch, takes 4 MiB here
        *(("running", 2, bfloat16) for bfloat16 in (False, True)),
        *half_of(0, ("running", "batch", "variant"), (8, 32), (False, True)),
    ],
)
def test_the_memory_budget_is_kept(mode: BatchNorm, mebibytes: int, bfloat16: bool) -> None:
    """Folded weights, the images' stem output and temporaries of a convolution come on top: 1.5 MiB here."""
    supernet = make_supernet(channels=8).eval()
    if mode == "batch":
        drop_statistics(supernet)
    alpha, ((images, labels),) = make_alpha(), make_batches(8, image=(16, 16))
    images = images.repeat(2, 1, 1, 1)
    if bfloat16:
        supernet, alpha, images = supernet.float(), alpha.float(), images.float()
    tables, _ = distinct_variants(alpha, removals(alpha))
    budget = mebibytes << 20
    cpu = torch.device("cpu")
    with bfloat16_products(cpu) if bfloat16 else nullcontext(), torch.no_grad(), LiveBytes() as live:
        for _ in fused_variants(mode, supernet, [(images, labels)], tables, budget)(images):
            pass
    assert live.peak <= 1.05 * budget + (3 << 19)
    node = 8 * 16 * 16 * (2 if bfloat16 else 8)
    most = 25 * len(images) * NODE_VALUES["fixed" if mode == "running" else "batch"] * node
    assert live.peak >= 0.5 * min(budget, most), "the budget is used"


def test_recalibration_of_a_fused_supernet_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same statistics as the plain modules', dropout off."""
    plain = make_supernet()
    fused = copy.deepcopy(plain)
    for cell in fused.cells:
        cell.fused = True
    assert all(skip.dropout > 0 for cell in fused.search_cells() for skip in cell.skip_connections())
    seeds = []
    mixed_cell = ops.mixed_cell

    def spy(*args: Any, **kwargs: Any) -> Any:
        seeds.append(args[4])
        return mixed_cell(*args, **kwargs)

    monkeypatch.setattr(ops, "mixed_cell", spy)
    batches, alpha = make_batches(20, 20), make_alpha()
    results = [leave_one_out(s, batches, alpha, batch_norm="recalibrated") for s in (plain, fused)]
    assert_same(*results)
    assert seeds == [None] * (2 * len(fused.search_cells()))
