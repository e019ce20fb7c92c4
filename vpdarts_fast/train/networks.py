"""The network of a cell: as it is trained, and as it is exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.runtime.synchronised import synchronise
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
