"""What a search would take in steps, time and memory, by trying a little of each of its phases."""

from __future__ import annotations

import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import SearchImages
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.precision import computing_in
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.driver import Search
from vpdarts_fast.search.finalists import Rung
from vpdarts_fast.search.finalists.training import CellTraining, Images
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.methods.schedules import Perturb, Prune, Stage
from vpdarts_fast.search.preflight import images_evaluated, steps_of_epoch
from vpdarts_fast.search.run_folder import RunFolder

UNTIMED = 3
"""First steps of a phase that are not timed: they allocate, choose kernels and record CUDA graphs."""

TIMED = 3
"""Steps of a phase that are, their median."""

JUDGING = 7 / 6
"""Judging a finalist takes a sixth of its training, at most (`Images.judging`)."""


@dataclass(frozen=True)
class Counts:
    """How much a search does; all members of a committee together.

    Attributes:
        stages: of the search.
        steps: in an epoch, of one member; in a search whose batches grow, in the first.
        weights_steps: training steps of the weights.
        alpha_steps: training steps of alpha.
        evaluations: leave-one-out evaluations.
        evaluation_batches: batches in each of them.
        evaluation_images: images in each of them.
        finalist_steps: training steps of finalists, at most.
    """

    stages: tuple[Stage, ...]
    steps: int
    weights_steps: int
    alpha_steps: int
    evaluations: int
    evaluation_batches: int
    evaluation_images: int
    finalist_steps: int

    @classmethod
    def of(cls, config: SearchConfig, training: int, validation: int, size: tuple[int, int]) -> Counts:
        """Counts what a search does on halves of so many images of that height and width."""
        search, members = config.search, config.search.committee
        steps = steps_of_epoch(config, training, size)
        images = images_evaluated(config, validation)
        return cls(
            stages=config.stages,
            steps=steps,
            weights_steps=members * steps * sum(stage.epochs for stage in config.stages if stage.weights),
            alpha_steps=members * (steps // config.method.alpha_every) * config.alpha_epochs,
            evaluations=members * _evaluations(config),
            evaluation_batches=math.ceil(images / config.optimisers.evaluation_batch_size),
            evaluation_images=images,
            finalist_steps=search.finalist_budget if search.finalists else 0,
        )


def _evaluations(config: SearchConfig) -> int:
    """How many leave-one-out evaluations a search has, those of a single edge included."""
    criterion, schedule, pruning = config.method.criterion, config.method.schedule, config.method.pruning
    if not criterion.needs_evaluation:
        return 0
    events = [schedule.event(epoch, config.space) for epoch in range(config.epochs)]
    settled = schedule.commits and config.space.kept is None
    return (not settled) + sum(
        isinstance(event, Perturb)
        or (
            isinstance(event, Prune)
            and event.epoch >= criterion.first_epoch
            and pruning.due(event.epoch, event.epochs)
        )
        for event in events
    )


@dataclass(frozen=True)
class Expectation:
    """What a search is expected to take.

    With E epochs of a stage, as warm-up and pruning, n steps in each epoch, M members of a committee, V
    evaluations of B batches, over all members, and F steps of finalists::

        stage         M E (d + n s)
        leave-one-out V (b + (B - 1) c)
        finalists     F f 7/6

    where s and f are the median times of a step of the phase, d is what it takes to begin an epoch, b is the
    time of an evaluation's first batch with what comes before it, and c of the next one. A search that
    removes or decides ops, lets them race or leaves finalists out gets faster as it goes; larger batches
    count as the first ones, of which there are more. Loading images, checkpoints and pictures are not in it.

    Attributes:
        counts: how much there is to do.
        seconds: of each phase.
        memory: bytes at the peak of what was tried: on CUDA, of PyTorch's memory on the device; else resident
            in the process since it began, with everything that it held before.
        device: where it ran.
    """

    counts: Counts
    seconds: dict[str, float]
    memory: int
    device: torch.device

    @property
    def total(self) -> float:
        """Seconds of the whole search."""
        return sum(self.seconds.values())

    def lines(self, seeds: int = 1) -> list[str]:
        """Says it in lines for people, for so many searches one after the other."""
        counts, seconds = self.counts, self.seconds
        where = "on the GPU" if self.device.type == "cuda" else "resident"
        lines = [
            "dry run: no search, no folder",
            *(f"{s.name}: {many(s.epochs, 'epoch')}, {duration(seconds[s.name])}" for s in counts.stages),
            f"  {many(counts.steps, 'step')} in an epoch; {many(counts.weights_steps, 'step')} of the "
            f"weights and {counts.alpha_steps:,} of alpha in all",
            f"leave-one-out: {many(counts.evaluations, 'evaluation')} of "
            f"{many(counts.evaluation_images, 'image')} in {many(counts.evaluation_batches, 'batch', 'es')}, "
            f"{duration(seconds['leave-one-out'])}",
        ]
        if counts.finalist_steps:
            lines.append(
                f"finalists: at most {counts.finalist_steps:,} steps, {duration(seconds['finalists'])}"
            )
        whole = f"the whole search: about {duration(self.total)}"
        if seeds > 1:
            whole += f", and {duration(seeds * self.total)} with all {seeds} seeds"
        return [*lines, whole, f"memory: {machine.readable(self.memory)} at the peak, {where}"]


def expect(
    config: SearchConfig,
    data: SearchImages,
    table: BenchmarkTable | None = None,
    loss: Loss = F.cross_entropy,
) -> Expectation:
    """Builds a search, tries a little of each phase and throws it away; nothing is left on the disk.

    Args:
        config: the settings.
        data: the images.
        table: where the search would look cells up.
        loss: of logits and labels, what training minimises.

    Raises:
        UserError: the search could not be finished.
    """
    with tempfile.TemporaryDirectory() as folder:  # nothing is written there, whatever a part does
        search = Search(config, data, RunFolder(Path(folder)), Nobody(), table, loss=loss)
        config, device = search.config, search.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        counts = Counts.of(config, len(search.training), len(search.validation), search.training.image_size)
        with computing_in(config.execution.precision, device):
            seconds = _seconds(search, counts, loss)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_reserved(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux has it in KiB
    return Expectation(counts, seconds, memory, device)


def _seconds(search: Search, counts: Counts, loss: Loss) -> dict[str, float]:
    """Of each phase, by the formula of `Expectation`."""
    member, members = search.members[0], len(search.members)
    seconds, first = {}, 0
    for stage in counts.stages:
        member.state.epoch, member.state.step = first, 0
        each = _epoch_seconds(member, counts.steps) if stage.epochs else 0.0
        seconds[stage.name] = members * stage.epochs * each
        first += stage.epochs
    seconds["leave-one-out"] = 0.0
    if counts.evaluations:
        first_batch, next_batch = _evaluation_seconds(member)
        seconds["leave-one-out"] = counts.evaluations * (
            first_batch + (counts.evaluation_batches - 1) * next_batch
        )
    if counts.finalist_steps:
        step = _finalist_seconds(search, loss)
        seconds["finalists"] = counts.finalist_steps * step * JUDGING
    return seconds


def _epoch_seconds(member: Member, steps: int) -> float:
    """Of an epoch from where the member is, by its first steps."""
    every = member.config.method.alpha_every
    watch, started = Stopwatch(member.device, (UNTIMED + TIMED) * every), _now(member.device)
    watch.until_enough(lambda: member.train_epoch(watch))
    return watch.begun - started + steps * watch.median(UNTIMED, every)


def _evaluation_seconds(member: Member) -> tuple[float, float]:
    """Of the first batch of an evaluation, with all that comes before it, and of a second one."""
    only = None
    if member.config.method.schedule.commits and not member.config.space.kept:  # an edge at a time
        only = torch.zeros_like(member.config.space.present)
        only[0] = member.config.space.present[0]
    watch, started = Stopwatch(member.device, 2), _now(member.device)
    watch.until_enough(lambda: member.evaluate(watch, only))
    return watch.times[0] - started, watch.times[-1] - watch.times[0]


def _finalist_seconds(search: Search, loss: Loss) -> float:
    """Of a training step of a cell that is drawn at random, with its batch."""
    config, space = search.config, search.space
    generator = torch.Generator().manual_seed(config.search.seed)
    order = torch.randperm(space.present.numel(), generator=generator, device="cpu").view(space.shape)
    cell = space.select(order.where(space.present, -1))
    images = Images(search.training, search.validation, config)
    batches = images.epoch(0, 0)
    training = CellTraining(
        cell, UNTIMED + TIMED, 0, config, search.num_classes, search.training.device, loss
    )
    watch = Stopwatch(search.device, UNTIMED + TIMED)
    watch.begins("finalists", training.steps, 0)
    for step in range(training.steps):
        training.train(batches(step % images.steps_per_epoch), counts=True)
        watch.done(step + 1, training.steps)
    return watch.median(UNTIMED)


class Nobody:
    """Hears of a search that is only tried (`vpdarts_fast.search.observer.Observer`)."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """Does nothing."""

    def advance(self, done: int, epochs: float) -> None:
        """Does nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Does nothing."""

    def rung(self, rung: Rung) -> None:
        """Does nothing."""


class Enough(Exception):
    """Raised when what was to be timed has been timed."""


class Stopwatch:
    """Times a member's units of work (`vpdarts_fast.search.member.Watch`), and stops it after some.

    Args:
        device: what is waited for.
        units: how many.

    Attributes:
        begun: when the phase began.
        times: when each unit was done.
    """

    def __init__(self, device: torch.device, units: int) -> None:
        self._device, self._units = device, units
        self.begun, self.times = 0.0, list[float]()

    def begins(self, phase: str, total: int, done: int) -> None:
        """Takes the time."""
        self.begun = _now(self._device)

    def stop_if_asked(self) -> None:
        """Raises `Enough` after so many units."""
        if len(self.times) >= self._units:
            raise Enough

    def done(self, done: int, total: int) -> None:
        """Takes the time."""
        self.times.append(_now(self._device))

    def until_enough(self, work: Callable[[], object]) -> None:
        """Calls a function that tells this watch of its progress, until there is enough of it."""
        try:
            work()
        except Enough:
            return

    def median(self, untimed: int, every: int = 1) -> float:
        """Seconds of a unit, the first ones left out where there are others; of `every` units their mean."""
        moments = [self.begun, *self.times][::every]
        if len(moments) < 2:  # there are not as many
            moments, every = [self.begun, self.times[-1]], len(self.times)
        each = [after - before for before, after in pairwise(moments)]
        return statistics.median(each[untimed:] or each[-1:]) / every


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def many(count: int, what: str, ending: str = "s") -> str:
    """Writes a count with its noun, as in `1 epoch` and `2,000 epochs`."""
    return f"{count:,} {what}{'' if count == 1 else ending}"


def duration(seconds: float) -> str:
    """Writes seconds for people, as in `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours < 24 else f"{hours / 24:,.1f} days"
