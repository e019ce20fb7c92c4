"""The network of a cell: as it is trained, and as it is exported."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.precision import activation_dtype
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.runtime.synchronised import synchronise
from vpdarts_fast.search.preflight import memory_of
from vpdarts_fast.search.streams import seed_for
from vpdarts_fast.spaces.costs import AUXILIARY, multiply_adds, parameters_of
from vpdarts_fast.train.config import TrainConfig

DROP_PATH = "drop_path_prob"
"""What a network calls the probability that a trainer raises from epoch to epoch, if it has one."""


def network_to_train(
    config: TrainConfig, num_classes: int, device: torch.device, processes: Processes = ALONE
) -> nn.Module:
    """Builds the network with its first weights, which are a function of the seed alone.

    Args:
        config: the settings.
        num_classes: of the classifier.
        device: where it goes.
        processes: that train it together.

    Returns:
        A module in training mode, in channels-last memory, called with images [N, 3, H, W].

    Raises:
        UserError: the space has no such network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(config.training.seed, "initial weights"))
        network: nn.Module = config.space.trained_network(
            config.genotype,
            num_classes,
            channels=config.network.channels,
            depth=config.network.depth,
            auxiliary=config.network.auxiliary_weight > 0,
            fused=config.execution.fused,
        )
    if config.network.drop_path > 0 and not hasattr(network, DROP_PATH):
        raise UserError(
            f"--drop-path {config.network.drop_path} is for networks that can drop paths; those of "
            f"{config.space.name} cannot: use 0"
        )
    network.to(device).to(memory_format=torch.channels_last).train()
    if config.training.sync_batch_norm:
        synchronise(network, processes)
    if config.execution.fused and not config.space.fused:
        accelerate(network)
    return network


def plain_network(
    space: Any, genotype: Any, num_classes: int, channels: int | None, depth: int | None
) -> nn.Module:
    """Builds the network without auxiliary head, of plain modules, in evaluation mode, to hold weights."""
    network: nn.Module = space.trained_network(genotype, num_classes, channels=channels, depth=depth)
    return network.eval()


def exported_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those entries of a trained network's state dict that `plain_network` has."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}


def cost_of(config: TrainConfig, num_classes: int, image_size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and multiply-adds for one image, of the network that is exported, as papers count them.

    Args:
        config: the settings.
        num_classes: of the classifier.
        image_size: height and width.
    """
    size = config.network.channels, config.network.depth
    with torch.device("meta"):  # nothing is computed
        network = plain_network(config.space, config.genotype, num_classes, *size)
    return {"parameters": parameters_of(network), "multiply_adds": multiply_adds(network, image_size)}


def least_memory(
    config: TrainConfig, num_classes: int, image_size: tuple[int, int], images: int
) -> tuple[int, int]:
    """Bytes that a training takes at least: for weights, and for the activations of a step.

    Each step keeps what enters the batch norms for its backward pass, whether plain modules or kernels
    compute it. Nothing is computed or allocated here.

    Args:
        config: the settings.
        num_classes: of the classifier.
        image_size: height and width.
        images: in a step of one process.
    """
    size = config.network.channels, config.network.depth
    kept_values = 0

    def count(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal kept_values
        kept_values += inputs[0].numel()

    with torch.device("meta"), torch.no_grad():
        network = plain_network(config.space, config.genotype, num_classes, *size)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(count)
        network(torch.zeros(1, 3, *image_size))
    copies = 2 + (config.training.momentum > 0) + (config.training.ema is not None)
    weights = sum(parameter.numel() for parameter in network.parameters())
    itemsize = activation_dtype(config.execution.precision).itemsize
    return 4 * weights * copies, images * kept_values * itemsize


def check_memory(
    config: TrainConfig,
    num_classes: int,
    image_size: tuple[int, int],
    training_images: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> None:
    """Raises `UserError` if a training needs more memory than its device has, by a lower estimate.

    Args:
        config: the settings.
        num_classes: of the classifier.
        image_size: height and width.
        training_images: how many there are.
        device: where it runs.
        processes: that share a batch.
    """
    batch = math.ceil(min(config.training.batch_size, training_images) / processes.count)
    weights, activations = least_memory(config, num_classes, image_size, batch)
    available = memory_of(device)
    if weights + activations > available:
        channels, depth = (
            size or "as in the paper" for size in (config.network.channels, config.network.depth)
        )
        raise UserError(
            f"this training needs at least {machine.readable(weights + activations)} of memory "
            f"({machine.readable(weights)} for weights, gradients and what goes with them, "
            f"{machine.readable(activations)} for the activations of a step), and "
            f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {machine.readable(available)}: "
            f"choose a smaller --batch-size ({config.training.batch_size:,}), "
            f"--channels ({channels}) or --depth ({depth})"
        )
