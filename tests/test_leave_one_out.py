"""Leave-one-out evaluation: fused against plain, batch norm modes, what stays untouched, memory, errors."""

from __future__ import annotations

import copy
import importlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpdarts_fast import data
from vpdarts_fast.backends import serving
from vpdarts_fast.errors import UserError
from vpdarts_fast.fused_evaluation import variant_logits
from vpdarts_fast.leave_one_out import (
    CALIBRATION_IMAGES,
    Batch,
    BatchNorm,
    LeaveOneOut,
    distinct_variants,
    leave_one_out,
    removals,
)
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet

FEW_IMAGES = 25

MODES: tuple[BatchNorm, ...] = get_args(BatchNorm)
every_mode = pytest.mark.parametrize("mode", MODES)
both_ways = pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])


def make_batches(
    *sizes: int, image: tuple[int, int] = (6, 6), dtype: torch.dtype = torch.float64, classes: int = 4
) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, *image, generator=generator, dtype=dtype),
            torch.randint(classes, (n,), generator=generator),
        )
        for n in sizes
    ]


def make_supernet(dtype: torch.dtype = torch.float64, channels: int = 2, cells: int = 1) -> Supernet:
    """With running statistics that suit the random images of `make_batches`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(channels, cells, 4).to(dtype)
        for images, _ in make_batches(20, 20, 20, dtype=dtype):
            supernet(images, supernet.new_alpha())
    return supernet


def make_alpha(zeros: Sequence[tuple[int, int]] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    alpha = torch.randn(6, 5, generator=torch.Generator().manual_seed(6), dtype=dtype) / 2
    for e, o in zeros:
        alpha[e, o] = 0
    return alpha


def assert_same(a: LeaveOneOut, b: LeaveOneOut, rtol: float = 1e-9) -> None:
    """Losses within rtol; predictions may differ for one image in 10,000."""
    assert a.images == b.images
    assert float((a.accuracy - b.accuracy).abs().max()) <= 0.01
    assert abs(a.base_accuracy - b.base_accuracy) <= 0.01
    torch.testing.assert_close(a.loss, b.loss, rtol=rtol, atol=0)
    assert a.base_loss == pytest.approx(b.base_loss, rel=rtol)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these gain nothing from more, and lose time to hand-overs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calibrate_on_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """`recalibrated` is content with 25 images, so that tests need not evaluate hundreds."""
    module = importlib.import_module("vpdarts_fast.leave_one_out")  # the package has a function of this name
    monkeypatch.setattr(module, "CALIBRATION_IMAGES", FEW_IMAGES)


# The fused implementation against the plain one, on a trained supernet --------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["N=1", "N=2"])
def trained(request: pytest.FixtureRequest) -> tuple[Supernet, Tensor, list[Batch]]:
    """A supernet after a few steps on the digits, its alpha, and validation batches, the last one smaller."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(8, request.param, 10, fused=True)
        alpha = supernet.new_alpha().requires_grad_()
        training, validation = data.split_halves(data.load("digits"), seed=0)
        weights = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        architecture = torch.optim.Adam([alpha], lr=0.02)
        for indices in torch.randperm(len(training)).repeat(3)[:1920].view(60, 32):
            images, labels = training.batch(indices)
            F.cross_entropy(supernet(images, alpha), labels).backward()  # type: ignore[no-untyped-call]
            for optimizer in (weights, architecture):
                optimizer.step()
                optimizer.zero_grad()
    batches = [validation.batch(indices) for indices in torch.tensor_split(torch.arange(64), (24, 48))]
    return supernet, alpha, batches


@every_mode
def test_fused_is_plain(trained: tuple[Supernet, Tensor, list[Batch]], mode: BatchNorm) -> None:
    supernet, alpha, batches = trained
    fused = leave_one_out(supernet, batches, alpha, batch_norm=mode)
    plain = leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=False)
    assert plain.base_accuracy > 20, "the supernet has learned too little for this test to say much"
    assert float(plain.loss.max() - plain.loss.min()) > 0.05, "the ops should matter"
    assert_same(fused, plain, rtol=1e-5)


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("budget", [None, 1 << 22])
def test_every_image_is_predicted_alike(
    trained: tuple[Supernet, Tensor, list[Batch]], mode: str, budget: int | None
) -> None:
    supernet, alpha, ((images, _), *_) = trained
    network = copy.deepcopy(supernet).eval()
    if mode == "batch":
        drop_statistics(network)
    tables, _ = distinct_variants(alpha, removals(alpha))
    with torch.no_grad():
        plain = torch.stack([network(images, table) for table in tables])
        fused = torch.full_like(plain, torch.nan)
        for variants, some, logits in variant_logits(network, images, tables, mode == "batch", budget):
            assert fused[variants, some].isnan().all(), "evaluated twice"
            fused[variants, some] = logits
    assert not fused.isnan().any(), "not evaluated"
    same = (fused.argmax(2) == plain.argmax(2)).double().mean()
    assert same >= 0.9999
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def drop_statistics(network: nn.Module) -> None:
    """Makes every batch norm use the batch's own statistics, also in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None


# What the modes mean ---------------------------------------------------------------------------------------


def specified(network: nn.Module, batches: Sequence[Batch], alpha: Tensor) -> LeaveOneOut:
    """The loop of the paper, written out: each entry of alpha set to zero in turn."""
    network.eval()

    @torch.no_grad()
    def validate(table: Tensor) -> tuple[float, float]:
        logits = torch.cat([network(images, table) for images, _ in batches]).double()
        labels = torch.cat([labels for _, labels in batches])
        right = int((logits.argmax(1) == labels).sum())
        return 100 * right / len(labels), float(F.cross_entropy(logits, labels))

    accuracy, loss = torch.zeros(2, 6, 5, dtype=torch.float64)
    for e in range(len(EDGES)):
        for o in range(len(OPS)):
            table = alpha.detach().clone()
            table[e, o] = 0
            accuracy[e, o], loss[e, o] = validate(table)
    return LeaveOneOut(accuracy, loss, *validate(alpha), sum(len(labels) for _, labels in batches))


@both_ways
def test_running_is_eval_mode(fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    result = leave_one_out(supernet, batches, alpha, batch_norm="running", fused=fused)
    assert_same(result, specified(supernet, batches, alpha))


@both_ways
def test_batch_uses_the_statistics_of_each_batch(fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    result = leave_one_out(supernet, batches, alpha, batch_norm="batch", fused=fused)
    drop_statistics(supernet)
    assert_same(result, specified(supernet, batches, alpha))


def test_recalibrated_takes_250_images() -> None:
    supernet, alpha, ((images, labels),) = make_supernet(), make_alpha(), make_batches(50, image=(2, 2))
    requested: list[int] = []

    class Enough(Exception):
        """Raised once the calibration images are collected."""

    def stop(*_: object) -> None:
        raise Enough

    def endless() -> Iterator[Batch]:
        while True:
            requested.append(len(labels))
            yield images, labels

    supernet.stem.register_forward_pre_hook(stop)
    with pytest.raises(Enough):
        leave_one_out(supernet, endless(), alpha)
    assert sum(requested) == CALIBRATION_IMAGES == 250


@both_ways
@pytest.mark.usefixtures("calibrate_on_few")
def test_recalibrated_averages_over_the_first_batches(fused: bool) -> None:
    supernet, alpha = make_supernet(), make_alpha()
    batches = make_batches(10, 10, 10, 10, 3)  # the first three hold 25 images
    result = leave_one_out(supernet, batches, alpha, fused=fused)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def collect(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            collected.setdefault(name, []).append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)))

        return hook

    batch_wise = copy.deepcopy(supernet).eval()
    drop_statistics(batch_wise)
    for name, module in batch_wise.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(collect(name))
    with torch.no_grad():
        for images, _ in batches[:3]:
            batch_wise(images, alpha)
    for name, statistics in collected.items():
        norm = supernet.get_submodule(name)
        norm.running_mean = torch.stack([mean for mean, _ in statistics]).mean(0)
        norm.running_var = torch.stack([variance for _, variance in statistics]).mean(0)
    assert len(collected) == 3 * 12 + 2 * 2 + 2
    assert_same(result, specified(supernet, batches, alpha))


@both_ways
def test_recalibrated_does_with_what_there_is(fused: bool) -> None:
    few = leave_one_out(make_supernet(), make_batches(8, 7), make_alpha(), fused=fused)
    assert few.images == 15 < CALIBRATION_IMAGES
    assert few.loss.isfinite().all()


def test_the_modes_differ() -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    losses = [leave_one_out(supernet, batches, alpha, batch_norm=mode).base_loss for mode in MODES]
    assert len({round(loss, 6) for loss in losses}) == 3


@both_ways
@every_mode
def test_a_supernet_that_keeps_no_statistics(mode: BatchNorm, fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(30, 30), make_alpha()
    expected = None if mode == "running" else leave_one_out(supernet, batches, alpha, batch_norm=mode)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    if expected is None:
        with pytest.raises(UserError, match="needs running statistics, and this supernet keeps none"):
            leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=fused)
    else:
        assert_same(leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=fused), expected)
    assert not [name for name, _ in supernet.named_buffers()]


# Variants --------------------------------------------------------------------------------------------------


def test_removals() -> None:
    alpha = make_alpha()
    tables = removals(alpha)
    assert tables.shape == (30, 6, 5)
    for number, table in enumerate(tables):
        changed = (table != alpha).nonzero().tolist()
        assert changed == [list(divmod(number, 5))]
        assert table[divmod(number, 5)] == 0


def test_distinct_variants_leave_out_what_is_the_base() -> None:
    alpha = make_alpha(zeros=[(2, 3), (4, 1)])
    removed = removals(alpha)
    tables, number = distinct_variants(alpha, removed)
    assert len(tables) == 1 + 24 - 2
    assert len(torch.unique(tables, dim=0)) == len(tables)
    assert torch.equal(tables[0], alpha)
    for n in range(30):
        expected = alpha if n % 5 == 0 else removed[n]  # `none` contributes nothing
        assert torch.equal(tables[number[n]], expected)


@both_ways
@every_mode
def test_removing_nothing_is_the_base_exactly(mode: BatchNorm, fused: bool) -> None:
    zeros = [(0, 1), (2, 3), (5, 2), (5, 4)]
    result = leave_one_out(
        make_supernet(), make_batches(9, 5), make_alpha(zeros), batch_norm=mode, fused=fused
    )
    for e, o in [*zeros, *((e, 0) for e in range(6))]:
        assert float(result.accuracy[e, o]) == result.base_accuracy
        assert float(result.loss[e, o]) == result.base_loss
    assert float(result.loss[0, 3]) != result.base_loss


@every_mode
@pytest.mark.parametrize(
    "alpha",
    [torch.zeros(6, 5), torch.full((6, 5), 0.2), torch.tensor([0.2, 0, 0, 0.7, 0]).repeat(6, 1)],
    ids=["all zero", "equal", "one op each"],
)
def test_special_alphas(mode: BatchNorm, alpha: Tensor) -> None:
    supernet, batches = make_supernet(), make_batches(20, 7)
    fused, plain = (
        leave_one_out(supernet, batches, alpha.double(), batch_norm=mode, fused=fused)
        for fused in (True, False)
    )
    assert_same(fused, plain)


# Batches, chunks, dtypes -----------------------------------------------------------------------------------


@every_mode
def test_any_memory_budget_gives_the_same(mode: BatchNorm) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(4, 3), make_alpha()
    expected = leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=False)
    per_image = NODE_VALUES["batch" if mode == "batch" else "fixed"] * 2 * 6 * 6 * 8
    # less than one image of one variant, around all 25 variants of an image and of three, no limit
    for budget in (1, 25 * per_image - 1, 25 * per_image, 75 * per_image, 1 << 40):
        result = leave_one_out(supernet, batches, alpha, batch_norm=mode, memory_budget=budget)
        assert_same(result, expected)


@both_ways
@every_mode
@pytest.mark.usefixtures("calibrate_on_few")
def test_batches_may_be_an_iterator(mode: BatchNorm, fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(15, 15, 2), make_alpha()
    taken = []

    def once() -> Iterator[Batch]:
        for batch in batches:
            taken.append(len(batch[1]))
            yield batch

    done: list[int] = []
    result = leave_one_out(supernet, once(), alpha, batch_norm=mode, fused=fused, on_batch=done.append)
    assert taken == [15, 15, 2]
    assert done == [15, 30, 32]
    assert result.images == 32
    assert_same(result, leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=fused))


@both_ways
@every_mode
def test_empty_batches_count_for_nothing(mode: BatchNorm, fused: bool) -> None:
    supernet, alpha = make_supernet(), make_alpha()
    batches = make_batches(0, 9, 0, 5)
    result = leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=fused)
    assert_same(
        result, leave_one_out(supernet, [batches[1], batches[3]], alpha, batch_norm=mode, fused=fused)
    )


@both_ways
def test_the_split_into_batches_is_irrelevant_with_fixed_statistics(fused: bool) -> None:
    supernet, alpha, ((images, labels),) = make_supernet(), make_alpha(), make_batches(17)
    whole = leave_one_out(supernet, [(images, labels)], alpha, batch_norm="running", fused=fused)
    parts = zip(images.tensor_split((5, 10)), labels.tensor_split((5, 10)), strict=True)
    assert_same(leave_one_out(supernet, parts, alpha, batch_norm="running", fused=fused), whole)


@every_mode
@pytest.mark.parametrize("image", [(15, 17), (5, 4), (1, 1), (1, 9)])
def test_image_sizes(mode: BatchNorm, image: tuple[int, int]) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(8, 5, image=image), make_alpha()
    fused, plain = (
        leave_one_out(supernet, batches, alpha, batch_norm=mode, fused=fused) for fused in (True, False)
    )
    # statistics of a few values each (1x1 images) blow rounding errors up
    assert_same(fused, plain, rtol=1e-6)


@every_mode
def test_layouts_of_the_images(mode: BatchNorm) -> None:
    supernet, alpha, batches = make_supernet(), make_alpha(), make_batches(9, 4)
    expected = leave_one_out(supernet, batches, alpha, batch_norm=mode)
    channels_last = [
        (images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches
    ]
    transposed = [(images.mT.contiguous().mT, labels) for images, labels in batches]
    for others in (channels_last, transposed):
        assert_same(leave_one_out(supernet, others, alpha, batch_norm=mode), expected)


@both_ways
def test_alpha_may_have_another_dtype(fused: bool) -> None:
    supernet, alpha = make_supernet(torch.float32), make_alpha()
    batches = make_batches(9, 4, dtype=torch.float32)
    expected = leave_one_out(supernet, batches, alpha.float(), fused=fused)
    assert_same(leave_one_out(supernet, batches, alpha, fused=fused), expected)


def test_the_result() -> None:
    supernet, alpha = make_supernet(), make_alpha().requires_grad_()
    result = leave_one_out(supernet, make_batches(9, 4), alpha)
    for tensor in (result.accuracy, result.loss):
        assert tensor.shape == (6, 5)
        assert tensor.dtype == torch.float64
        assert not tensor.requires_grad
    assert 0 <= float(result.accuracy.min()) <= float(result.accuracy.max()) <= 100
    assert result.images == 13
    with torch.no_grad():
        assert_same(leave_one_out(supernet, make_batches(9, 4), alpha), result)
    assert alpha.grad is None


# What must not change --------------------------------------------------------------------------------------


def snapshot(supernet: Supernet) -> dict[str, Any]:
    """Everything a supernet is: values and identity of its tensors, flags, hyperparameters."""
    state: dict[str, Any] = {}
    for name, tensor in [*supernet.named_parameters(), *supernet.named_buffers()]:
        state[name] = (tensor.data_ptr(), tensor.requires_grad, tensor.detach().clone().numpy().tobytes())
    for name, module in supernet.named_modules():
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        state[f"{name}:"] = {key: value for key, value in plain.items() if not isinstance(value, Tensor)}
    return state


class Stop(Exception):
    """Raised by the caller's own code."""


def stop(images: int) -> None:
    if images > 5:
        raise Stop


@both_ways
@every_mode
@pytest.mark.usefixtures("calibrate_on_few")
@pytest.mark.parametrize("event", ["nothing", "on_batch raises", "a bad batch", "batches raise"])
def test_the_supernet_is_left_as_it_was(mode: BatchNorm, fused: bool, event: str) -> None:
    supernet = make_supernet()
    next(iter(supernet.parameters())).requires_grad_(False)
    supernet.search_cells()[1].fused = True
    supernet.cells[1].eval()  # training flags may differ within a supernet
    before = snapshot(supernet)
    batches = make_batches(20, 10, 5)

    def given() -> Iterator[Batch]:
        yield from batches[:2]
        if event == "batches raise":
            raise Stop
        if event == "a bad batch":
            yield batches[2][0], batches[2][1] + 100
        yield batches[2]

    def run() -> None:
        on_batch = stop if event == "on_batch raises" else None
        leave_one_out(supernet, given(), make_alpha(), batch_norm=mode, fused=fused, on_batch=on_batch)

    if event == "nothing":
        run()
    else:
        with pytest.raises(UserError if event == "a bad batch" else Stop):
            run()
    assert snapshot(supernet) == before


@both_ways
@every_mode
def test_the_random_state_is_left_as_it_was(mode: BatchNorm, fused: bool) -> None:
    supernet, batches = make_supernet().train(), make_batches(5)
    before = torch.get_rng_state()
    leave_one_out(supernet, batches, make_alpha(), batch_norm=mode, fused=fused)
    assert torch.equal(torch.get_rng_state(), before), "no dropout draws"


# Memory ----------------------------------------------------------------------------------------------------


NODE_VALUES = {
    "fixed": serving("masked_cell", [torch.zeros(1, dtype=torch.float64)]).node_values["masked_cell"],
    "batch": serving("mixed_cell", [torch.zeros(1, dtype=torch.float64)]).node_values["mixed_cell"],
}
"""Of the backend that serves float64."""


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
    ("mode", "mebibytes"),
    # the least there is with batch statistics, one variant of the whole batch, takes 4 MiB here
    [("running", 2), ("running", 8), ("running", 32), ("batch", 8), ("batch", 32)],
)
def test_the_memory_budget_is_kept(mode: str, mebibytes: int) -> None:
    """Folded weights, the images' stem output and temporaries of a convolution come on top: 1.5 MiB here."""
    supernet = make_supernet(channels=8).eval()
    if mode == "batch":
        drop_statistics(supernet)
    alpha, ((images, _),) = make_alpha(), make_batches(8, image=(16, 16))
    images = images.repeat(2, 1, 1, 1)
    tables, _ = distinct_variants(alpha, removals(alpha))
    budget = mebibytes << 20
    with torch.no_grad(), LiveBytes() as live:
        for _ in variant_logits(supernet, images, tables, mode == "batch", budget):
            pass
    assert live.peak <= 1.05 * budget + (3 << 19)
    most = 25 * len(images) * NODE_VALUES["batch" if mode == "batch" else "fixed"] * 8 * 16 * 16 * 8
    assert live.peak >= 0.5 * min(budget, most), "the budget is used"


# Errors ----------------------------------------------------------------------------------------------------

IMAGES, LABELS = make_batches(4)[0]


@both_ways
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no images; `batches` was empty"),
        (make_batches(0, 0), "no images"),
        ([(IMAGES[0], LABELS)], r"images must have shape \[N, 3, H, W\]; got \[3, 6, 6\]"),
        ([(IMAGES[:, :2], LABELS)], r"images must have shape .*; got \[4, 2, 6, 6\]"),
        ([(IMAGES[..., :0], LABELS)], r"images must have shape .*; got \[4, 3, 6, 0\]"),
        ([(IMAGES.movedim(1, 3), LABELS)], r"images must have shape .*; got \[4, 6, 6, 3\]"),
        ([(IMAGES.byte(), LABELS)], "images must be torch.float64, like the supernet; got torch.uint8"),
        ([(IMAGES.float(), LABELS)], "images must be torch.float64, like the supernet; got torch.float32"),
        ([(IMAGES, LABELS[:3])], r"labels must be int64 \[N\] = \[4\]; got \[3\]"),
        ([(IMAGES, LABELS[:0])], r"labels must be int64 \[N\] = \[4\]; got \[0\]"),
        ([(IMAGES, LABELS[0])], r"labels must be int64 \[N\] = \[4\]; got \[\]"),
        ([(IMAGES, LABELS.int())], "labels must be int64 .* of torch.int32"),
        ([(IMAGES, LABELS.new_tensor([0, 1, 4, 2]))], r"labels must be in 0..3; got 0..4: the"),
        ([(IMAGES, LABELS.new_tensor([0, 1, -1, 2]))], r"labels must be in 0..3; got -1..2"),
    ],
)  # fmt: skip
def test_bad_batches_are_refused(fused: bool, batches: list[Batch], message: str) -> None:
    with pytest.raises(UserError, match=message):
        leave_one_out(make_supernet(), batches, make_alpha(), fused=fused)


@both_ways
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": torch.zeros(5, 6)}, r"alpha must be .* = \[6, 5\]; got \[5, 6\]"),
        ({"alpha": torch.zeros(6, 5).long()}, "alpha must be a floating-point table"),
        ({"alpha": torch.full((6, 5), torch.nan)}, "alpha must be finite"),
        ({"alpha": torch.full((6, 5), torch.inf)}, "alpha must be finite"),
        ({"batch_norm": "eval"}, "batch_norm must be one of recalibrated, running, batch; got 'eval'"),
        ({"memory_budget": 0}, "memory_budget must be positive, in bytes; got 0"),
        ({"memory_budget": -1}, "memory_budget must be positive"),
    ],
)
def test_bad_arguments_are_refused(fused: bool, arguments: dict[str, Any], message: str) -> None:
    arguments.setdefault("alpha", make_alpha())
    with pytest.raises(UserError, match=message):
        leave_one_out(make_supernet(), make_batches(4), fused=fused, **arguments)


@pytest.mark.parametrize("mode", ["batch", "recalibrated"])
@both_ways
def test_a_batch_without_variance_is_refused(mode: BatchNorm, fused: bool) -> None:
    supernet, single = make_supernet(), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(UserError, match="a batch of 1 image of 4x4 has no variance"):
        leave_one_out(
            supernet,
            [(single, torch.zeros(1, dtype=torch.int64))],
            make_alpha(),
            batch_norm=mode,
            fused=fused,
        )
