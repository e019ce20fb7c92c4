"""Threads that accelerate, train and evaluate models of their own at once: as one after another."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from acceleration_cases import CHANNELS, images, softmax
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn
from torch.utils import _device
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from whole_supernets import EdgesSupernet

from vpdarts_fast import leave_one_out
from vpdarts_fast.acceleration import accelerate, restore
from vpdarts_fast.acceleration.copies import isolated_copy
from vpdarts_fast.acceleration.fused import Fused
from vpdarts_fast.acceleration.tracing import trace
from vpdarts_fast.spaces.nas_bench_201 import Supernet

ROUNDS = 2
_number = itertools.count()


@pytest.fixture(autouse=True)
def often_interrupted(one_thread: None) -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def unknown(module: nn.Module) -> nn.Module:
    """The module, which has to be recognised anew: no other of this process is built quite like it."""
    for part in module.modules():
        part.number = next(_number)  # type: ignore[assignment]
    return module


def new(make: Callable[[], nn.Module]) -> nn.Module:
    """Always the same parameters, without the generator that all threads share."""
    module = unknown(make())
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            values = torch.linspace(-1, 1, parameter.numel()).add(i).mul(37).sin()
            parameter.copy_(values.view_as(parameter))
    return module


def stack() -> nn.Module:
    return nn.ModuleList(
        [MixedOp(darts_ops(CHANNELS, 1, Style())[3:]), Cell(CHANNELS, Style(), 3), Residual(CHANNELS)]
    )


def reported() -> Any:
    """What `accelerate` says, and that everything is as it was after `restore`."""
    model = new(stack)
    report = str(accelerate(model))
    fused = [isinstance(module, Fused) for module in model.modules()]
    restore(model)
    return report, fused, any(isinstance(module, Fused) for module in model.modules())


def trained() -> Any:
    """Steps of an accelerated model."""
    model = new(stack)
    accelerate(model)
    mixed_op, cell, residual = model
    found = []
    for _ in range(2):
        x = images(torch.float32).requires_grad_()
        alphas = [torch.linspace(-1, 1, count).requires_grad_() for count in (5, 15)]
        out = residual(cell(mixed_op(x, softmax(alphas[0])), softmax(alphas[1].view(3, 5))))
        out.square().mean().backward()
        found += [out.detach(), x.grad, *(alpha.grad for alpha in alphas)]
    return [*found, *(parameter.grad for parameter in model.parameters()), *model.buffers()]


def trained_plain() -> Any:
    """Steps of a model that has nothing to do with this package."""
    model = new(lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()))
    for _ in range(20):
        model(images(torch.float32)).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 4)]


def evaluated() -> Any:
    """Leave-one-out of an accelerated model."""
    model = new(EdgesSupernet)
    accelerate(model)
    result = leave_one_out(model, batches(), batch_norm="batch")
    return [result.cells["normal"].accuracy, result.cells["normal"].loss]


def evaluated_supernet() -> Any:
    """Leave-one-out of a supernet of this package."""
    supernet = new(lambda: Supernet(4, 1, 4, skip_dropout=0.0, fused=True))
    assert isinstance(supernet, Supernet)
    result = leave_one_out(supernet, batches(), torch.linspace(-1, 1, 30).view(6, 5), batch_norm="batch")
    return [result.accuracy, result.loss]


JOBS = [reported, trained, trained_plain, evaluated, evaluated_supernet, reported]


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What they return, all started at once."""
    barrier, results = threading.Barrier(len(jobs)), [None] * len(jobs)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def assert_alike(found: Any, expected: Any) -> None:
    for value, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
        else:
            assert value == other


def test_all_at_once_is_one_after_another() -> None:
    expected = [in_threads([job])[0] for job in JOBS]  # each on one thread as well: sums in the same order
    assert "3 of 3 modules fused" in expected[0][0]
    own_call, own_getattr = nn.Module.__call__, nn.Module.__getattr__
    for _ in range(ROUNDS):
        for found, other in zip(in_threads(JOBS), expected, strict=True):
            assert_alike(found, other)
    assert nn.Module.__call__ is own_call and nn.Module.__getattr__ is own_getattr
    assert _device.CURRENT_DEVICE is None
    assert not is_in_torch_dispatch_mode()  # a flag of the process, which keeps `torch.compile` from its work


def test_recognition_exchanges_nothing_of_the_process() -> None:
    """Seen from within an operation that is traced, and by another thread meanwhile."""
    own = nn.Module.__call__, nn.Module.__getattr__
    seen = []

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((nn.Module.__call__, nn.Module.__getattr__) == own)
            return x

    accelerate(unknown(MixedOp([*darts_ops(CHANNELS, 1, Style()), Looking()])))
    assert len(seen) >= 2 and all(seen)


def test_draws_of_other_threads_are_neither_blamed_on_a_module_nor_repeated() -> None:
    stop, drawn = threading.Event(), []
    models = [new(stack) for _ in range(3)]

    def draw() -> None:
        while not stop.is_set():
            drawn.append(float(torch.rand(())))

    torch.manual_seed(0)
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        reports = [str(accelerate(model)) for model in models]
    finally:
        stop.set()
        thread.join()
    assert all("3 of 3 modules fused" in report and "random" not in report for report in reports)
    torch.manual_seed(0)
    assert drawn == [float(torch.rand(())) for _ in drawn]


def test_what_draws_is_found_and_draws_again() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(()) if self.training else x

    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if random.random() < 0.999 and np.random.rand() < 0.999 else 0 * x

    models = [unknown(MixedOp([*darts_ops(CHANNELS, 1, Style()), op])) for op in (Noise(), Rare())]
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    for model in models:
        report = accelerate(model)
        assert report.fused[0].remark == "operation 8 runs as it is (draws random numbers)"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]


class Forms(nn.Module):
    """Layers in all the ways in which code calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.again = self.layers["conv"]
        self.sequence = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU()))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["norm"](self.layers["conv"](x))
        return self.again(torch.cat([self.sequence(x), x])) * self.scale + x.mean()


@pytest.mark.parametrize("kind", [Forms, nn.ReLU, lambda: factorised_reduce(8), lambda: Residual(4)])
def test_a_trace_is_that_of_torch_fx(kind: Callable[[], nn.Module]) -> None:
    op = kind()
    before = {name: dict(module.__dict__) for name, module in op.named_modules()}
    graph, expected = trace(op), torch.fx.Tracer().trace(nn.Sequential(op))
    assert [(node.op, str(node.target)) for node in graph.nodes] == [
        (node.op, str(node.target)) for node in expected.nodes
    ]
    for name, module in op.named_modules():
        assert dict(module.__dict__) == before[name]


def factorised_reduce(channels: int) -> nn.Module:
    return Style(padded_reduce=True).skip(channels, 2)


def test_hooks_and_compiled_layers_are_not_run_by_a_trace() -> None:
    op = Forms()
    calls: list[nn.Module] = []
    op.again.register_forward_hook(lambda module, args, out: calls.append(module))
    op.again.register_full_backward_hook(lambda module, *gradients: calls.append(module))
    op.again.compile(backend="aot_eager")
    nodes = trace(isolated_copy(op)).nodes
    assert next(node.target for node in nodes if node.op == "call_module") == "0.layers.conv"
    assert calls == []


def test_a_forward_of_an_instance_is_followed_by_a_trace() -> None:
    layer = nn.ReLU()
    layer.forward = lambda x: x + 1  # type: ignore[method-assign]
    assert [node.op for node in trace(layer).nodes] == ["placeholder", "call_function", "output"]
