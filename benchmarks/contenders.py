"""Who is compared: one table of forms of the same function, and how a form is built and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
import torch._dynamo
from torch import Tensor, nn

from vpdarts_fast import Supernet
from vpdarts_fast.backends import registry
from vpdarts_fast.spaces.blocks import MixedOp, ResidualBlock, SearchCell
from vpdarts_fast.spaces.nas_bench_201 import OPS

CHANNELS, CLASSES, SIZE, SKIP_DROPOUT = 16, 10, 32, 0.2

GRADIENT_TOLERANCE = 5e-3
"""Of `relative_error`, in float32: a value at ReLU's kink may fall to either side, in eager PyTorch too."""

Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Form:
    """One way to compute what the benchmarks time.

    Attributes:
        name: in the tables.
        channels_last: images and weights lie in channels-last memory.
        compiled: the plain modules through `torch.compile`; constants folded in (freezing) for inference.
        fused: through `vpdarts_fast.ops` instead of module by module.
        native: the fused ops may use native code.
    """

    name: str
    channels_last: bool = True
    compiled: bool = False
    fused: bool = False
    native: bool = False

    def images(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] as it lies in memory for this form."""
        return x.contiguous(
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
        )

    def module(self, module: Module) -> Module:
        """The module in this form's memory format, not compiled yet; in place.

        Modules that are not fused drop skip connections out with `nn.Dropout`: PyTorch's draw is faster than
        the one from a seed, which fused cells need.
        """
        for part in module.modules():
            if isinstance(part, (SearchCell, ResidualBlock)):
                part.fused = self.fused
            elif isinstance(part, MixedOp) and not self.fused:
                part[1] = nn.Dropout(part[1].dropout)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def supernet(self, cells_per_stage: int = 1, channels: int = CHANNELS) -> Supernet:
        """A supernet in training mode, with the same weights in every form."""
        torch.manual_seed(0)
        return self.module(Supernet(channels, cells_per_stage, CLASSES, skip_dropout=SKIP_DROPOUT)).train()

    def cell(self, channels: int, skip_dropout: float) -> SearchCell:
        """A cell in training mode, with the same weights in every form."""
        torch.manual_seed(0)
        return self.module(SearchCell(channels, OPS, 4, skip_dropout)).train()

    def forward(self, module: nn.Module) -> nn.Module:
        """What to call for the module's forward pass."""
        return torch.compile(module, dynamic=False) if self.compiled else module

    def run(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """The function, run the way this form runs; compiled forms are as fast as settings make them."""

        @wraps(function)
        def in_form() -> Result:
            if self.compiled:
                # With Inductor's own random numbers a training step took a third longer than with PyTorch's.
                settings = {"freezing": not torch.is_grad_enabled(), "fallback_random": True}
                with torch._inductor.config.patch(settings):
                    return function()
            if self.fused and not self.native:
                with no_native_backend():
                    return function()
            return function()

        return in_form

    def inference(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """As `run`, without gradients."""
        return torch.no_grad()(self.run(function))


FORMS = (
    Form("eager", channels_last=False),
    Form("eager, channels last"),
    Form("torch.compile", compiled=True),
    Form("PyTorch fused", fused=True),
    Form("ours", fused=True, native=True),
)
"""The baseline first, ours last."""

BY_NAME: Mapping[str, Form] = {form.name: form for form in FORMS}
EAGER, OURS = FORMS[0], FORMS[-1]

TIME_TO_COMPILE = 380
"""Seconds after the start in which a row may begin to compile, so that all rows end within ten minutes."""


def compared(full: bool, seconds: float) -> tuple[tuple[Form, ...], str]:
    """The forms that a row compares, and a remark where one is missing.

    Args:
        full: all of them; else those of the README's table, of which the slower way of our own is none.
        seconds: since the start.
    """
    if full:
        return FORMS, ""
    story = tuple(form for form in FORMS if form.native or not form.fused)
    if seconds < TIME_TO_COMPILE:
        return story, ""
    rest = tuple(form for form in story if not form.compiled)
    return rest, f"after {seconds:.0f} s there is no time left to compile: --full, or this row alone"


def compile_seconds() -> float:
    """That `torch.compile` has taken in this process."""
    return float(torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0))


@contextmanager
def no_native_backend() -> Iterator[None]:
    """Only the backends written in PyTorch serve calls of the fused ops."""
    everything = registry.BACKENDS
    registry.BACKENDS = tuple(b for b in everything if b.name in ("pytorch", "reference"))
    try:
        yield
    finally:
        registry.BACKENDS = everything


@dataclass
class Contender:
    """What is timed: `once`, if there is any, and `times` times as long as `work` takes.

    Attributes:
        note: stands in the table.
    """

    work: Callable[[], Any]
    times: float = 1.0
    once: Callable[[], Any] | None = None
    note: str = ""

    def seconds(self) -> float:
        started = perf_counter()
        if self.once is not None:
            self.once()
        middle = perf_counter()
        self.work()
        return middle - started + self.times * (perf_counter() - middle)


def ratio_of_rounds(theirs: list[float], own: list[float]) -> float:
    """The median over the rounds of how many times as long theirs took."""
    return median(a / b for a, b in zip(theirs, own, strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, Euclidean."""
    difference = actual.detach().double() - expected.detach().double()
    return float(difference.norm() / expected.detach().double().norm().clamp(min=1e-30))


def new_alpha() -> Tensor:
    """[E, O], near where the search starts and different for every op."""
    noise = torch.randn(6, len(OPS), generator=torch.Generator().manual_seed(0))
    return 1 / len(OPS) + 0.02 * noise


def new_batch(images: int) -> tuple[Tensor, Tensor]:
    """Random images [N, 3, 32, 32] and labels [N]."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(images, 3, SIZE, SIZE, generator=generator),
        torch.randint(CLASSES, (images,), generator=generator),
    )
