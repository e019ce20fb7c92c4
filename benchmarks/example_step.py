"""A weights step of the supernets of `examples/`, in any form; a fused form is an accelerated supernet."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from contenders import CHANNELS, FORMS, OURS, Form, new_batch
from step import BATCH
from torch import Tensor, nn

from vpdarts_fast import accelerate
from vpdarts_fast.evaluation.leave_one_out import BatchNorm

EXAMPLES = Path(__file__).parent.parent / "examples"

EXAMPLE_FORMS = (
    *(form for form in FORMS if not form.fused),
    replace(OURS, name="ours, NCHW", channels_last=False),
    OURS,
)
"""Ours in NCHW is the one line and nothing else."""


@cache
def example(name: str) -> ModuleType:
    """A script of `examples/`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_parts(name: str, network: nn.Module) -> list[nn.Module]:
    """What `torch.compile` gets: the network of the NAS-Bench-201 space; of the DARTS space cells, which take
    minutes each, or in a deep network mixed operations, of which there are five kinds."""
    if name != "darts":
        return [network]
    if len(network.cells) <= 3:
        return list(network.cells)
    return [module for module in network.modules() if isinstance(module, example("darts").MixedOp)]


class ExampleStep:
    """What a step of an example's supernet needs.

    An alpha step of the examples is the same forward and backward pass.

    Args:
        name: of the example.
        form: how it runs.
        size: cells in a stage of the NAS-Bench-201 space, layers of the DARTS space.
    """

    def __init__(
        self, name: str, form: Form, size: int, batch: int = BATCH, channels: int = CHANNELS
    ) -> None:
        torch.manual_seed(0)
        self.form = form
        self.network: nn.Module = form.module(example(name).Network(channels, size)).train()
        if form.fused:
            report = accelerate(self.network)
            assert report.fused and not report.left, report
        if form.compiled:
            for part in compiled_parts(name, self.network):
                part.compile(dynamic=False)
        images, labels = new_batch(batch)
        self.batch = form.images(images), labels
        self.weights = list(self.network.weights())
        self.weights_optimizer = torch.optim.SGD(self.weights, lr=0.025, momentum=0.9, weight_decay=3e-4)

    def __call__(self) -> float:
        """Takes a step; returns the mean loss."""
        return self.form.run(self._step)()

    def _step(self) -> float:
        images, labels = self.batch
        self.network.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.weights_optimizer.step()
        return loss.item()

    def double(self) -> ExampleStep:
        """This step in float64; in place, before the first one."""
        self.network.double()
        self.batch = self.batch[0].double(), self.batch[1]
        return self

    def gradient(self) -> Tensor:
        """Of the last step, by weights and alphas, as one vector."""
        return torch.cat([parameter.grad.flatten().double() for parameter in self.network.parameters()])


@torch.no_grad()
def evaluate_one(network: nn.Module, images: Tensor, mode: BatchNorm) -> None:
    """What the loop runs of one variant."""
    norms = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    if mode == "variant":
        for norm in norms:
            norm.train()
        network(images)
    network.eval()
    if mode == "batch":
        for norm in norms:  # without buffers it uses the batch's own statistics
            norm.running_mean = norm.running_var = None
    network(images)
