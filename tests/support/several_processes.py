"""What two processes do for tests of several; each writes what it saw to a file of its own.

several_processes.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from forked_processes import launch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.data import load
from vpdarts_fast.runtime.processes import ALONE, Processes, joined
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search import member as member_module
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.observer import MemberWatch, Silent
from vpdarts_fast.search.preflight import limited
from vpdarts_fast.spaces.darts import Darts, DartsSupernet
from vpdarts_fast.train.config import TrainConfig
from vpdarts_fast.train.images import Images
from vpdarts_fast.train.state import TrainingState

SETTINGS: dict[str, dict[str, Any]] = {
    "variant": {},
    "batch": {"batch_norm": "batch"},
    "running": {"batch_norm": "running", "criterion": "loss"},
    "loop": {"fused": False},
}  # fmt: skip
"""Searches whose members are evaluated."""

CONFIG = SearchConfig().replaced(
    dataset="digits",
    max_images=72,
    channels=4,
    cells_per_stage=1,
    batch_size=12,
    validation_proportion=1.0,
    evaluation_batch_size=16,
)


def member(processes: Processes, **settings: Any) -> Member:
    """The same one in every process."""
    config = CONFIG.replaced(**settings)
    halves = limited(load("digits"), config).halves(0)
    return Member(config, 0, 10, torch.device("cpu"), *halves, processes=processes)


def evaluated(processes: Processes, **settings: Any) -> tuple[list[Any], list[list[bool]]]:
    """What the evaluation of a member comes to, and which ops this process has left out."""
    masks: list[Tensor] = []
    real = member_module.leave_one_out

    def noting(*arguments: Any, **options: Any) -> Any:
        masks.append(options["only"])
        return real(*arguments, **options)

    made = member(processes, **settings)
    with torch.no_grad():  # the running statistics of the first process are those of all
        for buffer in made.state.supernet.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.01 * (1 + processes.number) if processes.count > 1 else 0.01)
    member_module.leave_one_out = noting  # type: ignore[assignment]
    try:
        found = made.evaluate(MemberWatch(Silent(), 0, 1, 0, lambda: None))
    finally:
        member_module.leave_one_out = real
    values = [found.accuracy.tolist(), found.loss.tolist(), found.base_accuracy, found.base_loss]
    return values, [] if masks[0] is None else masks[0].tolist()


def vector(network: nn.Module) -> Tensor:
    """All parameters one behind the other."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def trained(processes: Processes) -> tuple[Tensor, Tensor, list[float]]:
    """The weights and alphas after a step of each, the first steps of the search, and their sums."""
    made = member(processes, skip_dropout=0.0, learning_rate=0.1)
    draws = made.training.draw(torch.arange(12)), made.validation.draw(torch.arange(12))
    sums = [made._train_weights(draws[0]), made._train_alpha(draws[1])]
    parameters = vector(made.state.supernet)
    return parameters, made.state.alpha.detach().flatten(), torch.cat(sums).tolist()


def trained_by_hand(count: int) -> tuple[Tensor, Tensor]:
    """The same in one process: the mean of the gradients on the parts, each with statistics of its own."""
    made = member(ALONE, skip_dropout=0.0, learning_rate=0.1)
    state = made.state
    draws = made.training.draw(torch.arange(12)), made.validation.draw(torch.arange(12))
    for draw, half, leaves, optimizer in (
        (draws[0], made.training, list(state.supernet.parameters()), state.weights_optimizer),
        (draws[1], made.validation, [state.alpha], state.alpha_optimizer),
    ):
        losses = []
        for part in draw.tensor_split(count, dim=1):
            images, labels = half.take(part)
            losses.append(F.cross_entropy(state.supernet(images, state.alpha), labels))
        gradients = torch.autograd.grad(sum(losses) / count, leaves, allow_unused=True)  # type: ignore[arg-type]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if len(leaves) > 1:
            nn.utils.clip_grad_norm_(leaves, 5.0)
        optimizer.step()
    parameters = vector(state.supernet)
    return parameters, state.alpha.detach().flatten()


SYNCHRONISED: dict[str, dict[str, Any]] = {
    "fused": {},
    "plain": {"fused": False},
    "DARTS": {"space": Darts(channels=4, layers=3)},
    "varied": {"recipe": "pc-darts", "channels": 8},
    "not synchronised": {"sync_batch_norm": False},
}
"""Searches whose batch norms take their statistics over all processes."""


@contextmanager
def float64() -> Iterator[None]:
    """Within, networks are made in float64: in float32 rounding may decide between two pixels of a pool."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widen(images: Any) -> None:
    """Makes the batches of a set of images float64."""
    take = images.take

    def taken(draw: Tensor) -> tuple[Tensor, Tensor]:
        batch, labels = take(draw)
        return batch.double(), labels

    images.take = taken


@float64()
def as_one(processes: Processes, **settings: Any) -> list[float]:
    """How far steps of all processes on unequal parts are from those of one process on all images.

    Of the weights after a step, relative to the step, of alpha's gradient and of the running statistics.
    """
    given = {"skip_dropout": 0.0, "learning_rate": 0.1, "sync_batch_norm": True, **settings}
    if isinstance(given.get("space"), Darts):
        del given["skip_dropout"]
    together, alone = (member(each, **given) for each in (processes, ALONE))
    before = vector(alone.state.supernet)
    for made in (together, alone):
        widen(made.training)
        widen(made.validation)
        draws = (half.draw(torch.arange(11)) for half in (made.training, made.validation))
        for draw, step in zip(draws, (made._train_weights, made._train_alpha), strict=True):
            step(draw)
    weights, expected = (vector(made.state.supernet) for made in (together, alone))
    found = [float((weights - expected).norm() / (expected - before).norm())]
    gradient, of_one = (made.state.alpha.grad for made in (together, alone))
    assert gradient is not None and of_one is not None
    found.append(float((gradient - of_one).norm() / of_one.norm()))
    buffers = zip(together.state.supernet.buffers(), alone.state.supernet.buffers(), strict=True)
    return [*found, max(float((ours - theirs).abs().max()) for ours, theirs in buffers)]


@float64()
def network_as_one(processes: Processes) -> float:
    """The same of the weights of a network that is trained from scratch."""
    config = TrainConfig().replaced(
        dataset="digits", channels=4, depth=1, batch_size=11, gradient_clip=1.0, sync_batch_norm=True
    )
    images = Images.of(load("digits"), config, torch.device("cpu"))
    widen(images.training)
    indices = images.order(config, 0)[0]
    vectors = []
    for each in (processes, ALONE):
        state = TrainingState(config, 10, torch.device("cpu"), 1, processes=each)
        before = vector(state.network)
        batch, share = images.batch(indices, config, 0, 0, each)
        state.train(batch, len(indices), share, each)
        vectors.append(vector(state.network))
    return float((vectors[0] - vectors[1]).norm() / (vectors[1] - before).norm())


def network_trained(processes: Processes) -> list[float]:
    """How far a step of a training is from one by hand, of the mean gradient, and its loss."""
    config = TrainConfig().replaced(dataset="digits", channels=4, depth=1, batch_size=12, gradient_clip=1.0)
    data = load("digits")
    images = Images.of(data, config, torch.device("cpu"))
    indices = images.order(config, 0)[0]
    state, by_hand = (TrainingState(config, 10, torch.device("cpu"), 1) for _ in range(2))
    batch, share = images.batch(indices, config, 0, 0, processes)
    state.train(batch, len(indices), share, processes)
    (whole, labels), _ = images.batch(indices, config, 0, 0, ALONE)
    parts = zip(whole.tensor_split(processes.count), labels.tensor_split(processes.count), strict=True)
    losses = [F.cross_entropy(by_hand.network(part), of_part) for part, of_part in parts]
    parameters = list(by_hand.network.parameters())
    gradients = torch.autograd.grad(sum(losses) / processes.count, parameters)  # type: ignore[arg-type]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, 1.0)
    by_hand.optimizer.param_groups[0]["lr"] = config.training.learning_rate
    by_hand.optimizer.step()
    apart = max(
        float((ours - theirs).detach().abs().max())
        for ours, theirs in zip(state.network.parameters(), parameters, strict=True)
    )
    return [apart, *state.record.summary()]  # type: ignore[list-item]


def of_other_code(processes: Processes) -> float:
    """How far gradients of an accelerated model under DDP are from the mean of the processes' own."""
    torch.manual_seed(0)
    model = DartsSupernet(4, 3, 10)
    accelerate(model)
    weights = torch.full(model.weights_shape, 0.125)
    torch.manual_seed(1 + processes.number)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)

    def gradients(network: nn.Module) -> list[Tensor]:
        network.zero_grad()
        F.cross_entropy(network(images, weights), labels).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    own = gradients(model)
    processes.add_up(own, 1 / processes.count)
    together = gradients(DistributedDataParallel(model))
    return max(float((a - b).abs().max()) for a, b in zip(own, together, strict=True))


def words(processes: Processes) -> dict[str, Any]:
    """What the processes say to each other."""
    part, share = processes.part(torch.arange(7)[None])
    whole, equal = processes.part(torch.arange(3)[None], least=2)
    several = [torch.full((2, 2), float(processes.number)), torch.tensor([1.0])]
    processes.add_up(several, 0.5)
    copied = torch.tensor([processes.number])
    processes.copy_from_first([copied])
    return {
        "part": part.tolist(),
        "share": share,
        "whole": whole.tolist(),
        "equal": equal,
        "sums": [tensor.tolist() for tensor in several],
        "copied": copied.tolist(),
        "any": [processes.any(False), processes.any(processes.number == 1)],
        "told": processes.tell({"ü": [1, None]} if processes.first else "nothing"),
        "turns": processes.turns(torch.tensor([[True, False], [True, True]])).tolist(),
    }


def main(folder: Path) -> None:
    """Does all of it."""
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        parameters, alpha, sums = trained(processes)
        by_hand = trained_by_hand(processes.count)
        seen = {
            "words": words(processes),
            "evaluated": {name: evaluated(processes, **settings) for name, settings in SETTINGS.items()},
            "alone": {
                name: evaluated(ALONE, **settings)[0]
                for name, settings in SETTINGS.items()
                if processes.first
            },
            "trained": [parameters.double().sum().item(), alpha.double().sum().item(), sums],
            "apart": [
                float((ours - theirs).abs().max())
                for ours, theirs in zip((parameters, alpha), by_hand, strict=True)
            ],
            "network": network_trained(processes),
            "as_one": {name: as_one(processes, **settings) for name, settings in SYNCHRONISED.items()},
            "network_as_one": network_as_one(processes),
            "of_other_code": of_other_code(processes),
        }
        (folder / f"{processes.number}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(launch(main, Path(sys.argv[1])) != "done")
