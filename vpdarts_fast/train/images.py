"""The images of a training: those that train, those that validate and those that test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vpdarts_fast.data import ImageData, ImageHalf, MappedImages
from vpdarts_fast.data.batches import epoch_order, halves_of
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.validation import Batch
from vpdarts_fast.runtime.processes import Processes
from vpdarts_fast.search.preflight import last_batch_is_too_small
from vpdarts_fast.search.streams import stream
from vpdarts_fast.spaces.darts.network import LEAST_SIZE
from vpdarts_fast.spaces.stems import REDUCTIONS
from vpdarts_fast.train.config import TrainConfig

Data = ImageData | MappedImages
"""What `vpdarts_fast.data.sources.load` gives."""


@dataclass(frozen=True)
class Images:
    """What a training sees.

    Attributes:
        training: what trains.
        validation: what validates after each epoch; None where all images train.
        test: what the result is measured on.
        labels: of all images that train or validate, int64 [N].
        digest: of these images.
    """

    training: ImageHalf
    validation: ImageHalf | None
    test: ImageHalf
    labels: torch.Tensor
    digest: str

    @classmethod
    def of(cls, data: Data, config: TrainConfig, device: torch.device) -> Images:
        """Divides a data set as the settings say.

        Raises:
            UserError: it is none that can be trained on.
        """
        used, training = config.images.max_images, config.training
        if used is not None and used < len(data.train_labels):
            generator = stream(training.split_seed, "images used")
            chosen = torch.randperm(len(data.train_labels), generator=generator, device="cpu")[:used]
            data = data.subset(chosen)
        check_data(data, config)
        test = data.test_half().to(device)
        if training.images == "half":
            first, second = data.halves(training.split_seed, config.images.split)
            return cls(first.to(device), second.to(device), test, data.train_labels, data.digest())
        whole, _ = data.halves(0, "shared")
        return cls(whole.to(device), None, test, data.train_labels, data.digest())

    def order(self, config: TrainConfig, epoch: int) -> list[torch.Tensor]:
        """The batches of an epoch: which images each of them has, int64 [B]."""
        count, size = len(self.training), config.training.batch_size
        smallest = config.space.smallest(self.training.image_size)
        generator = stream(config.training.seed, "order", epoch)
        return epoch_order(count, size, generator, last_batch_is_too_small(count, size, smallest))

    def batch(
        self, indices: torch.Tensor, config: TrainConfig, epoch: int, step: int, processes: Processes
    ) -> tuple[Batch, float]:
        """A process' part of a batch, augmented by chances of that step alone, and its share of the batch."""
        draw = self.training.draw(indices, stream(config.training.seed, "augmentation", epoch, step))
        pixels = config.space.smallest(self.training.image_size)
        mine, share = processes.part(draw, math.ceil(2 / pixels))
        return self.training.take(mine.to(self.training.device)), share


def check_data(data: Data, config: TrainConfig) -> None:
    """Raises `UserError` for images that the network cannot be trained on."""
    count, (height, width) = len(data.train_labels), data.image_size
    if data.num_classes < 2 or (data.train_labels == data.train_labels[0]).all():
        raise UserError(
            f"the training images of {data.name} are all of one class, "
            f"{data.classes[int(data.train_labels[0])]!r}: a network learns nothing from them. It takes "
            "images of at least 2 classes"
        )
    if config.training.images == "half" and count < 4:
        raise UserError(
            f"--images half needs at least 4 training images, two a half; {data.name} has {count}"
        )
    trained = (
        len(halves_of(data.name, count, 0, config.images.split)[0])
        if (config.training.images == "half")
        else count
    )
    pixels = config.space.smallest(data.image_size)
    least = math.ceil(2 / pixels)
    if min(config.training.batch_size, trained) < least:
        raise UserError(
            f"--batch-size must be at least {least}, and there must be as many images: batch norm has "
            f"nothing to normalise with in a single image of {height}x{width} pixels; got "
            f"{config.training.batch_size}, and {trained} images"
        )


def check_auxiliary(data: Data, config: TrainConfig) -> None:
    """Raises `UserError` for images that are too small for an auxiliary head."""
    height, width = data.image_size
    least = 1 + (LEAST_SIZE - 1) * REDUCTIONS[getattr(config.space, "stem", "plain")]
    if config.network.auxiliary_weight > 0 and min(height, width) < least:
        raise UserError(
            f"--auxiliary-weight {config.network.auxiliary_weight}: the auxiliary head needs images of at "
            f"least {least}x{least}, and those of {data.name} are {height}x{width}: use 0"
        )
