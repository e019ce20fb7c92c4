"""What stays as it was when a model is accelerated, and what may still change."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from acceleration_cases import CHANNELS, Mixture, assert_same_output, both, images
from closeness import (
    STEPS,
    Results,
    Training,
    assert_close_to_truth,
    assert_trains_alike,
    clear_of_jumps,
)
from supernets import (
    AuxiliaryMixedOp,
    Cell,
    DropPathMixedOp,
    MixedOp,
    PartialMixedOp,
    Residual,
    Style,
    darts_ops,
)
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate, restore
from vpdarts_fast.acceleration import fused as acceleration_fused


@pytest.fixture
def mixed_op() -> nn.Module:
    torch.manual_seed(0)
    module = MixedOp(darts_ops(CHANNELS, 1, Style()))
    accelerate(module)
    return module


pytestmark = pytest.mark.float32

ARGUMENTS = images(torch.float32), torch.linspace(0, 1, 8)


def run(module: nn.Module) -> Tensor:
    out: Tensor = module(*ARGUMENTS)
    return out


def test_copies_and_pickles_are_accelerated_too(mixed_op: nn.Module, calls: list[str]) -> None:
    expected = run(copy.deepcopy(mixed_op))
    file = io.BytesIO()
    torch.save(mixed_op, file)
    file.seek(0)
    copies = [
        copy.deepcopy(mixed_op),
        copy.copy(mixed_op),
        pickle.loads(pickle.dumps(mixed_op)),
        torch.load(file, weights_only=False),
    ]
    calls.clear()
    for found in copies:
        assert isinstance(found, MixedOp)
        assert torch.equal(run(found), expected)
    assert calls == ["mixed_op"] * len(copies)


def test_what_others_see_of_a_model_stays(mixed_op: nn.Module) -> None:
    plain = MixedOp(darts_ops(CHANNELS, 1, Style()))
    assert isinstance(mixed_op, MixedOp)
    assert list(mixed_op.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in mixed_op.named_modules()] == [name for name, _ in plain.named_modules()]
    assert repr(mixed_op) == repr(plain)
    plain.load_state_dict(mixed_op.state_dict())


@pytest.mark.parametrize("kind", ["mixed op", "cell", "residual block"])
def test_outputs_lie_in_memory_as_inputs_and_may_be_changed_in_place(kind: str, calls: list[str]) -> None:
    make: dict[str, Callable[[], nn.Module]] = {
        "mixed op": lambda: MixedOp(darts_ops(12, 1, Style())),
        "cell": lambda: Cell(12, Style()),
        "residual block": lambda: Residual(12),
    }
    alpha = {"mixed op": torch.linspace(0, 1, 8), "cell": torch.linspace(0, 1, 30).view(6, 5)}
    modules: list[nn.Module] = [*both(make[kind](), torch.float32)]
    if kind in alpha:
        modules = [Mixture(module, alpha[kind], lambda weights: weights) for module in modules]
    for layout in (torch.contiguous_format, torch.channels_last):

        def in_place(
            module: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, layout: Any = layout
        ) -> Results:
            optimiser.zero_grad()
            out = module(x)
            assert out.is_contiguous(memory_format=layout)
            changed = out.mul_(torch.arange(3.0)[:, None, None, None])
            changed.square().sum().backward()
            return {"out": changed}

        def draw(seed: int, layout: Any = layout) -> Tensor:
            return images(torch.float32, 12, seed=seed).contiguous(memory_format=layout)

        assert_trains_alike(*(Training(module, in_place) for module in modules), draw)
    assert len(calls) == 2 * STEPS[torch.float32]


def test_dropout_draws_what_it_drew(calls: list[str]) -> None:
    ops = darts_ops(CHANNELS, 1, Style())
    ops[3] = nn.Sequential(nn.Identity(), nn.Dropout(0.5))
    plain, fused = (nn.ModuleList([some, copy.deepcopy(some)]) for some in both(MixedOp(ops), torch.float32))
    outs = []
    for first, second in (plain, fused):
        torch.manual_seed(2)
        outs.append(second(first(images(torch.float32), torch.rand(8)), torch.rand(8)))
    expected, out = outs
    assert_close_to_truth({"out": out}, {"out": expected.double()})
    assert calls == ["mixed_op"] * 2


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norms_without_a_count_keep_statistics_all_the_same(
    momentum: float | None, calls: list[str]
) -> None:
    module = MixedOp(darts_ops(CHANNELS, 1, Style()))
    for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.num_batches_tracked, norm.momentum = None, momentum
    plain, fused = both(module, torch.float32)
    plain.double()(*(argument.double() for argument in ARGUMENTS))
    run(fused)
    assert_close_to_truth(dict(fused.named_buffers()), dict(plain.named_buffers()))
    assert calls == ["mixed_op"]


def test_restore_gives_the_class_back(mixed_op: nn.Module, calls: list[str]) -> None:
    restore(mixed_op)
    assert type(mixed_op) is MixedOp
    assert not [name for name in mixed_op.__dict__ if "vpdarts" in name]
    run(mixed_op)
    assert calls == []


def test_to_accelerate_twice_is_to_accelerate_once(mixed_op: nn.Module) -> None:
    kind = type(mixed_op)
    assert len(accelerate(mixed_op).fused) == 1
    assert type(mixed_op) is kind


def test_hooks_are_called(mixed_op: nn.Module, calls: list[str]) -> None:
    """On the module itself as before; where somebody looks inside, it runs its own code."""
    seen: list[nn.Module] = []
    handle = mixed_op.register_forward_hook(lambda module, args, out: seen.append(module))
    run(mixed_op)
    assert seen == [mixed_op] and calls == ["mixed_op"]
    handle.remove()
    convolution = next(module for module in mixed_op.modules() if isinstance(module, nn.Conv2d))
    handle = convolution.register_forward_hook(lambda module, args, out: seen.append(module))
    run(mixed_op)
    assert seen[1:] == [convolution] and calls == ["mixed_op"]
    handle.remove()
    run(mixed_op)
    assert calls == ["mixed_op"] * 2


def test_data_parallel_replicas_run(mixed_op: nn.Module, calls: list[str]) -> None:
    replica = mixed_op._replicate_for_data_parallel()
    assert torch.equal(run(replica), run(mixed_op))
    assert torch.equal(run(nn.DataParallel(mixed_op)), run(mixed_op))
    assert calls == ["mixed_op"] * 4


def test_distributed_data_parallel_trains_the_same(mixed_op: nn.Module, tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        expected = copy.deepcopy(mixed_op)
        wrapped = nn.parallel.DistributedDataParallel(mixed_op)
        for module in (wrapped, expected):
            run(module).square().sum().backward()
        for found, other in zip(mixed_op.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found.grad, other.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_a_drop_probability_that_is_set_later_counts(calls: list[str]) -> None:
    module = DropPathMixedOp(darts_ops(CHANNELS, 1, Style()))
    accelerate(module)
    run(module)
    assert calls == ["mixed_op"]
    module.drop_prob = 0.9
    assert (run(module) == 0).float().mean() > 0.5
    assert calls == ["mixed_op"]


def test_what_is_added_to_the_mixture_may_change(calls: list[str]) -> None:
    torch.manual_seed(0)
    plain = AuxiliaryMixedOp(darts_ops(CHANNELS, 1, Style()), nn.Identity())
    fused = copy.deepcopy(plain)
    (entry,) = accelerate(fused).fused
    assert entry.remark == "what is added to the mixture runs as it is"
    for decay in (0.5, 0.0):
        fused.decay = plain.decay = decay
        assert_same_output(fused, plain, *ARGUMENTS)
    fused.auxiliary = plain.auxiliary = nn.Conv2d(CHANNELS, CHANNELS, 1)
    assert_same_output(fused, plain, *ARGUMENTS)
    assert calls == ["mixed_op"] * 3


def test_channels_may_grow(calls: list[str]) -> None:
    module = PartialMixedOp(darts_ops(2, 1, Style()), 4)
    accelerate(module)
    run(module)
    wider = PartialMixedOp(darts_ops(4, 1, Style()), 2)
    module._ops, module.k = wider._ops, 2
    calls.clear()
    assert_same_output(module, wider, *ARGUMENTS)
    assert calls == ["mixed_op"]


def test_channels_may_grow_in_place(calls: list[str]) -> None:
    """Some layers keep the numbers of channels that they were built with."""
    module = MixedOp(darts_ops(4, 1, Style()))
    accelerate(module)
    wider = MixedOp(darts_ops(CHANNELS, 1, Style()))
    for own, other in zip(module.modules(), wider.modules(), strict=True):
        own._parameters, own._buffers = other._parameters, other._buffers
        if isinstance(own, nn.Conv2d) and isinstance(other, nn.Conv2d):
            own.groups = other.groups
    assert "as it is" not in str(accelerate(module))
    assert_same_output(module, wider, *ARGUMENTS)
    assert calls == ["mixed_op"]


class Step(nn.Module):
    """It counts its calls, in an attribute and in a buffer, and changes with them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("also", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.also += 1
        return x / self.calls


def test_operations_may_change_in_every_step(calls: list[str]) -> None:
    module = MixedOp([*darts_ops(CHANNELS, 1, Style()), Step()])
    accelerate(module)
    step = module._ops[8]
    assert isinstance(step, Step) and step.calls == 0 and step.also == 0
    seen: list[nn.Module] = []
    step.register_forward_hook(lambda layer, args, out: seen.append(layer))
    for _ in range(120):
        module(images(torch.float32), torch.rand(9))
    assert step.calls == step.also == len(seen) == 120
    assert calls == ["mixed_op"] * 120


def test_settings_that_change_in_every_step_are_too_much(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acceleration_fused.RETRIES == 100
    monkeypatch.setattr(acceleration_fused, "RETRIES", 10)
    module = PartialMixedOp(darts_ops(2, 1, Style()), 4)
    module.step = -1  # type: ignore[assignment]
    accelerate(module)
    with pytest.warns(UserWarning, match="PartialMixedOp has changed 10 times since it was accelerated"):
        for i in range(15):
            module.step = i  # type: ignore[assignment]
            run(module)
    assert len(calls) == 10


@pytest.mark.parametrize("form", ["compiled", "checkpointed"])
def test_compiled_and_checkpointed_modules_run_on_the_ops(mixed_op: nn.Module, form: str) -> None:
    truth = copy.deepcopy(mixed_op)
    restore(truth)
    truth.double()
    function = torch.compile(mixed_op, backend="aot_eager")
    if form == "checkpointed":
        function = functools.partial(torch.utils.checkpoint.checkpoint, mixed_op, use_reentrant=False)

    def gradients(function: Callable[..., Tensor], module: nn.Module, x: Tensor) -> Results:
        module.zero_grad()
        x = x.clone().requires_grad_()
        function(x, torch.linspace(0, 1, 8, dtype=x.dtype)).square().sum().backward()
        return {"x": x.grad} | {name: parameter.grad for name, parameter in module.named_parameters()}

    x, expected = clear_of_jumps(
        lambda seed: images(torch.float32, seed=seed), lambda x: gradients(truth, truth, x.double())
    )
    assert_close_to_truth(gradients(function, mixed_op, x), expected)
