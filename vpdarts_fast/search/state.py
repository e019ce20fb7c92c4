"""Everything a search changes as it goes, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.formats import shown
from vpdarts_fast.runs.values import number, numbers_by_name, tensor_like, tensors_like, truth, whole
from vpdarts_fast.runtime.graphs import captures
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.runtime.synchronised import synchronise
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.methods.commits import (
    DROPPED,
    OPEN,
    choosable,
    decided_weights,
    nothing_decided,
)
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation
from vpdarts_fast.search.methods.schedules import Stage
from vpdarts_fast.search.methods.variations import Variation
from vpdarts_fast.search.methods.widening import ChannelCopies
from vpdarts_fast.search.optimizers import CapturableSGD, adapted, alpha_optimizer, weights_optimizer
from vpdarts_fast.search.records import EpochRecord
from vpdarts_fast.search.settings import MethodSettings
from vpdarts_fast.search.streams import seed_for, stream
from vpdarts_fast.spaces.space import Space


class SearchState:
    """Supernet, alpha, optimisers, schedule and position.

    Attributes:
        alpha: [E, O], a leaf that requires a gradient.
        tables: what the variation trains beside alpha, leaves that require gradients.
        alive: [E, O] bool; False where an edge has no such op, or progressive hard pruning removed it.
        decided: [E] int64, of each edge the number of the op that was decided on, `OPEN` or `DROPPED`.
        moments: of each part that keeps something, by its kind.
        epoch: the epoch in progress, from 0.
        step: the step of it that comes next.
        seconds: per phase, over the whole search.
        wide: whether the supernet has its wide edges (`Schedule.widest`).
    """

    def __init__(
        self,
        config: SearchConfig,
        num_classes: int,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.space, self.method, self._processes = config.space, config.method, processes
        self._config, self._num_classes, self._device = config, num_classes, device
        self._make_supernet(config.method.variation)
        weight = next(self.supernet.parameters())
        self.alpha = first_alpha(config).to(weight.device, weight.dtype).requires_grad_()
        self.tables = {
            name: table.to(weight.device, weight.dtype).requires_grad_()
            for name, table in first_tables(config).items()
        }
        self.alive = config.space.present.to(weight.device)
        self.decided = nothing_decided(config.space.shape[0]).to(weight.device)
        self._epoch = torch.zeros((), dtype=torch.float64, device=weight.device)
        self.moments = {
            kind: Moment(self._epoch, config.epochs, moved(part.new_state(config.space.shape), weight.device))
            for kind, part in parts_with_state(config.method).items()
        }
        self.alpha_optimizer = alpha_optimizer(self.alpha, config, self._captured, self.tables.values())
        self.epoch = 0
        self.step = 0
        self.record = EpochRecord()
        self.seconds: dict[str, float] = {}

    def _make_supernet(self, variation: Variation) -> None:
        """Makes a supernet with edges of that make, its optimiser and its schedule, as they begin."""
        config = self._config
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.search.seed, "initial weights"))
            supernet = variation.supernet(
                self.space, self._num_classes, fused=config.execution.fused, backend=config.execution.backend
            )
        self.supernet = supernet.to(self._device).train()
        if config.optimisers.sync_batch_norm:
            synchronise(self.supernet, self._processes)
        if config.execution.fused and not config.fused_by_itself:
            self.supernet.to(memory_format=torch.channels_last)  # as batches of images are
            accelerate(self.supernet, backend=config.execution.backend)
        self.weights_optimizer = weights_optimizer(self.supernet.parameters(), config, self._captured)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.weights_optimizer,
            T_max=max(self.method.schedule.annealed_epochs(self.space), 1),
            eta_min=config.optimisers.learning_rate_end,
        )
        # Or the schedule warns where an epoch has no step left, as PyTorch wants one before it goes on.
        self.weights_optimizer._opt_called = True  # type: ignore[attr-defined]
        self.wide = variation != self.method.variation

    @property
    def _captured(self) -> bool:
        """Whether steps are recorded as CUDA graphs."""
        return self._config.execution.cuda_graphs and captures(self._device)

    @torch.no_grad()
    def widen(self, ranking: Tensor, ops: int) -> None:
        """Prunes all but the first ops of each edge, and makes edges as wide as the schedule has them.

        Weights, running statistics and momentum of new channels are copies; steps captured before are of no
        use any more.

        Args:
            ranking: [E, O] int64, the ops of each edge from the strongest on.
            ops: how many stay.
        """
        self.alive.scatter_(1, ranking[:, ops:], False)
        self.alpha[~self.alive] = 0
        narrow, optimizer, schedule = self.supernet, self.weights_optimizer, self.schedule
        self._make_supernet(self.method.schedule.widest(self.method.variation))
        copies = ChannelCopies(
            narrow, self.supernet, stream(self._config.search.seed, "copied channels", self.epoch)
        )
        self.supernet.load_state_dict(
            {name: copies.widened(name, tensor) for name, tensor in narrow.state_dict().items()}
        )
        wide = dict(self.supernet.named_parameters())
        for name, parameter in narrow.named_parameters():
            if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
                self.weights_optimizer.state[wide[name]]["momentum_buffer"] = copies.widened(name, momentum)
        self.weights_optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        self.schedule.load_state_dict(schedule.state_dict())

    def weights_of(self, alpha: Tensor) -> Tensor:
        """What the supernet is called with, [E, O + further], of alpha [E, O]."""
        weights = self.method.relaxation.weights(alpha, self.alive, self.moments["relaxation"])
        if not self.method.schedule.commits:
            return self._varied(weights)
        weights = self._varied(decided_weights(weights, self.decided))
        return weights * (self.decided != DROPPED)[:, None]

    def _varied(self, weights: Tensor) -> Tensor:
        return self.method.variation.weights(weights, self.tables, self.space, self.moments["variation"])

    @property
    def moving(self) -> Tensor | None:
        """The edges whose alphas change, [E] bool; None for all, where none is decided before the end."""
        return self.decided == OPEN if self.method.schedule.commits else None

    @property
    def choosable(self) -> Tensor:
        """The ops that may still be chosen, [E, O] bool, on the CPU."""
        return choosable(self.alive.cpu(), self.decided.cpu())

    def penalty(self, alpha: Tensor) -> Tensor | None:
        """What the method's regulariser adds to the loss of an alpha step."""
        return self.method.regulariser.term(alpha, self.alive, self.moments["regulariser"])

    def begin_epoch(self, stage: Stage, *, fresh: bool) -> None:
        """Prepares what the epoch's first step finds: a constant learning rate, and momentum from 0 on.

        Args:
            stage: of the epoch.
            fresh: whether it is the stage's first one.
        """
        if stage.learning_rate is None or self.step:
            return
        self.weights_optimizer.param_groups[0]["lr"] = stage.learning_rate
        for kept in self.weights_optimizer.state.values() if fresh else ():
            if kept.get("momentum_buffer") is not None:  # in place, for steps already captured
                kept["momentum_buffer"].zero_()

    def publish_epoch(self) -> None:
        """Makes steps take epoch and learning rate as they are now, also those already captured."""
        self._epoch.fill_(self.epoch)
        if isinstance(self.weights_optimizer, CapturableSGD):
            self.weights_optimizer.publish()

    _PARTS = ("supernet", "weights_optimizer", "alpha_optimizer", "schedule")

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for `checkpoint.save`."""
        return {
            **{part: getattr(self, part).state_dict() for part in self._PARTS},
            "alpha": self.alpha.detach(),
            "tables": detached(self.tables),
            "alive": self.alive,
            "decided": self.decided,
            "wide": self.wide,
            "parts": {kind: dict(moment.state) for kind, moment in self.moments.items()},
            "epoch": self.epoch,
            "step": self.step,
            "record": self.record.to_dict(),
            "seconds": self.seconds,
        }

    def snapshot(self) -> dict[str, Any]:
        """Returns the part of `state_dict` that leave-one-out evaluation looks at."""
        return {
            "supernet": self.supernet.state_dict(),
            "alpha": self.alpha.detach(),
            "tables": detached(self.tables),
            "alive": self.alive,
            "decided": self.decided,
            "parts": {kind: dict(moment.state) for kind, moment in self.moments.items()},
            "epoch": self.epoch,
        }

    def load_state_dict(self, content: Mapping[str, Any], source: str, *, epochs: int, steps: int) -> None:
        """The inverse of `state_dict`.

        Args:
            content: what a checkpoint holds.
            source: its name in errors.
            epochs: how many the search has.
            steps: how many an epoch has.

        Raises:
            UserError: naming `source`, where it does not fit this search in any shape, type or range.
        """
        with fitting(source):
            if truth(content["wide"], "wide") and not self.wide:
                self._make_supernet(self.method.schedule.widest(self.method.variation))
            self.supernet.load_state_dict(
                tensors_like(content["supernet"], self.supernet.state_dict(), "supernet")
            )
            for optimizer, name in (
                (self.weights_optimizer, "weights_optimizer"), (self.alpha_optimizer, "alpha_optimizer")
            ):  # fmt: skip
                optimizer.load_state_dict(adapted(content[name], optimizer))
            with torch.no_grad():
                self.alpha.copy_(tensor_like(content["alpha"], self.alpha, "alpha"))
                for name, table in tensors_like(content["tables"], self.tables, "tables").items():
                    self.tables[name].copy_(table)
                self.alive.copy_(tensor_like(content["alive"], self.alive, "alive"))
                self.decided.copy_(checked_decisions(content["decided"], self.decided, self.space))
            self.epoch = whole(content["epoch"], "epoch", 0, epochs)
            # Stopped between the last step of an epoch and its end, all steps are done.
            self.step = whole(content["step"], "step", 0, steps if self.epoch < epochs else 0)
            self._load_schedule(content["schedule"])
            self.record = EpochRecord.from_dict(content["record"], self.space)
            for kind, moment in self.moments.items():
                kept = tensors_like(content["parts"].get(kind, {}), moment.state, f"the state of {kind}")
                for name, tensor in moment.state.items():
                    tensor.copy_(kept[name])
            self.seconds = numbers_by_name(content["seconds"], "seconds", 0)

    def _load_schedule(self, saved: Mapping[str, Any]) -> None:
        """The position of the schedule; everything else of it follows from the settings."""
        whole(saved["last_epoch"], "last_epoch", self.epoch, self.epoch)
        (rate,) = saved["_last_lr"]
        position = {
            "last_epoch": self.epoch,
            "_step_count": whole(saved["_step_count"], "_step_count"),
            "_last_lr": [number(rate, "_last_lr", 0)],
        }
        self.schedule.load_state_dict({**self.schedule.state_dict(), **position})


def first_alpha(config: SearchConfig) -> Tensor:
    """Says where alpha starts, [E, O] float64 on the CPU; a supernet's noise is drawn by its own seed."""
    present = config.space.present
    start = config.method.alpha_start
    row = 1 / present.sum(1, dtype=torch.float64) if start is None else torch.tensor(start).double()
    alpha = row.view(-1, 1).expand(present.shape) * present
    if config.method.alpha_noise:
        noise = torch.empty_like(alpha).normal_(generator=stream(config.search.seed, "alpha noise"))
        alpha += config.method.alpha_noise * noise * present
    return alpha


def first_tables(config: SearchConfig) -> dict[str, Tensor]:
    """Says where what is trained beside alpha starts: float64 on the CPU; drawn by the supernet's seed."""
    return config.method.variation.new_tables(config.space, stream(config.search.seed, "tables"))


@contextmanager
def fitting(source: str) -> Iterator[None]:
    """Turns what state of another search raises within into a `UserError` naming `source`."""
    try:
        yield
    except KeyError as error:
        raise UserError(
            f"{source} does not fit the settings of its run: the entry {shown(error.args[0])} is missing"
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{source} does not fit the settings of its run: {error}") from error


def parts_with_state(method: MethodSettings) -> dict[str, Relaxation | Regulariser | Variation]:
    """The parts that may keep something from one call to the next, by their kinds."""
    return {
        "relaxation": method.relaxation,
        "regulariser": method.regulariser,
        "variation": method.variation,
    }


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values without gradients."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Moves tensors to a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def checked_decisions(value: Any, template: Tensor, space: Space[Any]) -> Tensor:
    """Decisions [E] of a checkpoint; raises `ValueError` for an edge without such an op."""
    decided = tensor_like(value, template, "decided")
    ops = space.present.sum(1).to(decided.device)
    if ((decided < DROPPED) | (decided >= ops)).any():
        raise ValueError(
            f"decided must be numbers of ops, {OPEN} or {DROPPED}; got {shown(decided.tolist())}"
        )
    return decided
