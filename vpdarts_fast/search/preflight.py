"""What can be known of a search before it begins: whether images, batches, table and memory will do."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.bounds import LEAST_IMAGES
from vpdarts_fast.data import GIVEN, SearchImages
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.memory_budget import cell_need, cell_op
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.precision import activation_dtype
from vpdarts_fast.runtime.processes import Processes
from vpdarts_fast.search.config import SearchConfig, flag
from vpdarts_fast.search.methods.stopping import NoStopping
from vpdarts_fast.search.streams import stream
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES
from vpdarts_fast.spaces.space import Space


def check_search(
    config: SearchConfig, data: SearchImages, table: BenchmarkTable | None, device: torch.device
) -> None:
    """Checks all that would stop the search later and can be known now; allocates nothing of its size.

    Raises:
        UserError: too few images or classes, batches without a variance to normalise with, a table without
            all architectures, or more memory than there is; in the words of the command line's flags.
    """
    check_data(config, data)
    check_batches(config, data)
    check_alpha_steps(config, data)
    check_table(config, table)
    check_memory(config, data, device)
    check_memory_budget(config, data, device)
    check_finalists(config, data, device)


def check_processes(config: SearchConfig, processes: Processes) -> None:
    """Raises `UserError` for what several processes cannot compute from a part of each batch."""
    rule = config.method.alpha_rule
    if processes.count > 1 and rule.needs_training and not rule.joint:
        raise UserError(
            f"--alpha-rule {rule.name} looks ahead on a training batch, of which each of the "
            f"{processes.count} processes has only its part: use one process, or --alpha-rule first-order"
        )


def limited(data: SearchImages, config: SearchConfig) -> SearchImages:
    """Draws `config.images.max_images` of the training images at random; all where there are no more."""
    count, used = len(data.train_labels), config.images.max_images
    if used is None or used >= count:
        return data
    generator = stream(config.search.seed, "images used")
    return data.subset(torch.randperm(count, generator=generator, device="cpu")[:used])


def images_used(config: SearchConfig, data: SearchImages) -> int:
    """How many training images of the data set both halves have together."""
    available = len(data.train_labels)
    return available if config.images.max_images is None else min(config.images.max_images, available)


def training_images(config: SearchConfig, data: SearchImages) -> int:
    """How many of these are to train the weights."""
    used = images_used(config, data)
    return used if config.images.split == "shared" else used // 2


def validation_images(config: SearchConfig, data: SearchImages) -> int:
    """How many of these are to validate; of an odd number one more than to train."""
    used = images_used(config, data)
    return used if config.images.split == "shared" else used - used // 2


def images_evaluated(config: SearchConfig, validation: int) -> int:
    """How many of the validation images each leave-one-out evaluation draws."""
    return max(1, round(validation * config.search.validation_proportion))


def images_of_epoch(config: SearchConfig, count: int) -> int:
    """How many images an epoch visits of a half that has so many."""
    return count if config.search.images_per_epoch is None else min(config.search.images_per_epoch, count)


def last_batch_is_too_small(count: int, batch_size: int, smallest: int) -> bool:
    """Whether the rest of so many images that fills no batch has no variance to normalise with.

    It is then left out of the epoch, as PyTorch's `drop_last` does; `smallest` is from `Space.smallest`.
    """
    rest = count % batch_size
    return rest > 0 and rest * smallest < 2


def steps_of_epoch(config: SearchConfig, count: int, image_size: tuple[int, int]) -> int:
    """How many batches an epoch has of a half that has so many images."""
    count, size = images_of_epoch(config, count), config.optimisers.batch_size
    return math.ceil(count / size) - last_batch_is_too_small(count, size, config.space.smallest(image_size))


def check_data(config: SearchConfig, data: SearchImages) -> None:
    """Raises `UserError` for a data set that no search can learn from."""
    count = len(data.train_labels)
    if count < LEAST_IMAGES:
        raise UserError(
            f"{_named(config, data)} has too few training images: a search needs at least {LEAST_IMAGES}, "
            f"half of them to train and half to validate; got {count}"
        )
    if data.num_classes < 2:
        raise UserError(
            f"{_named(config, data)} has one class ({data.classes[0]}): every architecture is always right. "
            "A search needs at least 2 classes"
        )
    if (data.train_labels == data.train_labels[0]).all():
        raise UserError(
            f"{_named(config, data)}: all {count} training images are of the class "
            f"{data.classes[int(data.train_labels[0])]!r}; a search needs images of at least 2 classes"
        )


def check_batches(config: SearchConfig, data: SearchImages) -> None:
    """Raises `UserError` where a batch norm would meet a single value per channel."""
    pixels = config.space.smallest(data.image_size)
    needed = math.ceil(2 / pixels)
    if needed == 1:
        return
    height, width = data.image_size
    why = f"batch norm has nothing to normalise with in a single image of {height}x{width} pixels"
    if config.optimisers.batch_size < needed:
        raise UserError(f"--batch-size must be at least {needed}: {why}; got {config.optimisers.batch_size}")
    if not config.method.criterion.needs_evaluation or config.search.batch_norm == "running":
        return
    validation = validation_images(config, data)
    count = images_evaluated(config, validation)
    proportion, largest = config.search.validation_proportion, config.optimisers.evaluation_batch_size
    parts = math.ceil(count / largest)
    if count // parts < needed:
        raise UserError(
            f"leave-one-out would have a batch of {count // parts} image, and {why}: it draws {count} of the "
            f"{validation} validation images (--validation-proportion {proportion}) in batches of at most "
            f"{largest} (--evaluation-batch-size). Take more images, larger batches or --batch-norm running"
        )


def check_table(config: SearchConfig, table: BenchmarkTable | None) -> None:
    """Raises `UserError` for a table that lacks an architecture: the search may come to any of them."""
    if table is None or table.held.all():
        return
    raise UserError(
        f"--benchmark-table {config.reporting.benchmark_table or ''}".rstrip()
        + f" holds {table.held.sum():,} of {NUM_ARCHITECTURES:,} architectures, and a search may come to any "
        "of them: convert the complete benchmark, or leave the table out"
    )


def least_memory(config: SearchConfig, data: SearchImages) -> tuple[int, int]:
    """Bytes that a search takes at least: for weights, and for the activations of a batch."""
    copies = (3 if config.optimisers.momentum > 0 else 2) * config.search.committee
    variation = config.method.schedule.widest(config.method.variation)
    weights = 4 * variation.parameters(config.space, data.num_classes) * copies
    batch = min(config.batch_size(config.epochs - 1), images_used(config, data))
    activations = batch * activation_bytes(config, data.image_size)
    if config.method.criterion.needs_evaluation:
        activations = max(activations, evaluation_bytes(config, data))
    return weights, activations


def check_memory(config: SearchConfig, data: SearchImages, device: torch.device) -> None:
    """Raises `UserError` if the search needs more memory than the machine has, by a lower estimate."""
    weights, activations = least_memory(config, data)
    available = memory_of(device)
    if weights + activations > available:
        raise UserError(
            f"these settings need at least {machine.readable(weights + activations)} of memory "
            f"({machine.readable(weights)} for weights, gradients and momentum, "
            f"{machine.readable(activations)} for the activations of a batch), and "
            f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {machine.readable(available)}: "
            f"choose a smaller --committee ({config.search.committee:,}), {sizes(config.space)}, "
            f"--batch-size ({config.optimisers.batch_size:,}) or "
            f"--evaluation-batch-size ({config.optimisers.evaluation_batch_size:,})"
        )


def check_memory_budget(config: SearchConfig, data: SearchImages, device: torch.device) -> None:
    """Raises `UserError` for less than leave-one-out takes for one variant of what it cannot cut."""
    if (
        config.execution.memory_budget_mib is None
        or not config.fused_by_itself
        or not config.execution.fused
        or not config.method.criterion.needs_evaluation
    ):
        return
    whole_batches = config.search.batch_norm in ("batch", "variant")  # take statistics of every variant
    activations = torch.empty(0, dtype=activation_dtype(config.execution.precision), device=device)
    need = cell_need(
        cell_op(whole_batches), config.execution.backend, activations, node_bytes(config, data.image_size)
    )
    images, what = 1, "an image"
    if whole_batches:
        images = min(
            config.optimisers.evaluation_batch_size, images_evaluated(config, validation_images(config, data))
        )
        what = (
            f"a batch of {images} images (--evaluation-batch-size), which --batch-norm "
            f"{config.search.batch_norm} cannot cut"
        )
    least = need.total(1, images)
    if config.execution.memory_budget_mib << 20 < least:
        raise UserError(
            f"--memory-budget-mib must be at least {math.ceil(least / 2**20):,}, of one variant of {what}; "
            f"got {config.execution.memory_budget_mib:,}"
        )


def check_alpha_steps(config: SearchConfig, data: SearchImages) -> None:
    """Raises `UserError` if an epoch is too short for a step of alpha."""
    every = config.method.alpha_every
    steps = steps_of_epoch(config, training_images(config, data), data.image_size)
    if config.alpha_epochs and every > steps:
        raise UserError(
            f"--alpha-every {every:,} is more than the {steps:,} steps of an epoch, so that alpha would "
            "never be trained: choose at most as many"
        )


def check_finalists(config: SearchConfig, data: SearchImages, device: torch.device) -> None:
    """Raises `UserError` if there can be none, or one needs more memory than there is, at least."""
    if not config.search.finalists:
        return
    if (schedule := config.method.schedule).commits:
        raise UserError(
            f"--schedule {schedule.name} leaves a single cell, which has no others to be compared with: use "
            f"--finalists 0; got {config.search.finalists}"
        )
    if (stopping := config.method.stopping).name != NoStopping.name:
        raise UserError(
            f"--stopping {stopping.name} takes the cell of an epoch, which finalists would not know: use "
            f"--finalists 0; got {config.search.finalists}"
        )
    finalist = config.space.finalist
    weights = 4 * finalist.parameters(data.num_classes)  # what an op that is not chosen has, too
    batch = min(config.optimisers.batch_size, images_used(config, data))
    activations = batch * (
        finalist.kept_values(data.image_size, edges=False)
        * activation_dtype(config.execution.precision).itemsize
    )
    available = memory_of(device)
    if weights + activations > available:
        raise UserError(
            f"a finalist needs at least {machine.readable(weights + activations)} of memory, and "
            f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {machine.readable(available)}: "
            f"choose a smaller {sizes(config.space, finalist=True)} or "
            f"--batch-size ({config.optimisers.batch_size:,})"
        )


def activation_bytes(config: SearchConfig, image_size: tuple[int, int]) -> int:
    """How many bytes a training step of the supernet keeps of an image for the backward pass, at least."""
    values = config.space.kept_values(image_size, edges=not config.method.variation.varies)
    return values * activation_dtype(config.execution.precision).itemsize


def node_bytes(config: SearchConfig, image_size: tuple[int, int]) -> int:
    """How many bytes the largest of the nodes takes of an image; 0 if that is not known."""
    sizes = [math.prod(stage) for stage in config.space.stages(image_size)]
    return max(sizes, default=0) * activation_dtype(config.execution.precision).itemsize


def evaluation_bytes(config: SearchConfig, data: SearchImages) -> int:
    """How many bytes a batch of leave-one-out takes, at least.

    They are those of a cell's input and of its output for one variant.
    """
    count = images_evaluated(config, validation_images(config, data))
    batch = math.ceil(count / math.ceil(count / config.optimisers.evaluation_batch_size))
    return 2 * batch * node_bytes(config, data.image_size)


def sizes(space: Space[Any], finalist: bool = False) -> str:
    """Lists the flags that say how large the networks of a space are, with what they are."""
    numbers = {
        each.name: getattr(space, each.name)
        for each in dataclasses.fields(space)  # type: ignore[arg-type]
        if isinstance(getattr(space, each.name), int) and each.name.startswith("finalist_") == finalist
    }
    return ", ".join(f"{flag(name)} ({value:,})" for name, value in numbers.items())


def choose_device(name: str) -> torch.device:
    """Finds the device of a name, of `auto` a GPU where there is one; `UserError` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device must be auto, cpu or cuda; got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch finds no usable CUDA device here; use cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu or cuda; got {name!r}")
    return device


def memory_of(device: torch.device) -> int:
    """How many bytes a device has in all; of the CPU, what this process may take of the machine's."""
    if device.type == "cuda":
        total: int = torch.cuda.mem_get_info(device)[1]
        return total
    return machine.memory()


def _named(config: SearchConfig, data: SearchImages) -> str:
    if config.images.dataset == GIVEN:
        return f"the data set that was given ({data.name})"
    where = f" --data {config.images.data}" if config.images.data is not None else ""
    return f"the data set of --dataset {config.images.dataset}{where} ({data.name})"
