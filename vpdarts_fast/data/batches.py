"""Normalised float batches from uint8 images, augmented a whole batch at a time.

The arithmetic is NumPy's, on the calling thread. Split over threads, operations this short lose more
to waiting for a thread that the machine has given to somebody else than they gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from vpdarts_fast.data.pixels import Augmentation, Policy, check_images, describe
from vpdarts_fast.data.protocol import Split
from vpdarts_fast.errors import UserError

Images = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

DEVICE_BYTES = 4 << 30
"""Of the images of a data set: so many a GPU holds, and of more it is given batches."""


class ImageSet:
    """The images and labels of one subset, as uint8, handed out as normalised batches.

    Args:
        images: uint8 [M, H, W, 3], in memory or mapped from a file; they are not copied, and only those of a
            batch are read.
        labels: int64 [M].
        mean: subtracted from each channel, float32 [3] in units of 0..255.
        std: then divides each channel, float32 [3] in units of 0..255, above 0.
        augmentation: what the images go through in `batch` when it is given a generator.
        places: int64 [N], each in 0..M-1: which of the images the subset has, in this order; None: all.

    Attributes:
        labels: of the subset, int64 [N].
        augmentation: see there.

    Raises:
        UserError: an argument is not as described.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        augmentation: Augmentation,
        places: Tensor | None = None,
    ) -> None:
        check_images(images, labels)
        for name, statistic in (("mean", mean), ("std", std)):
            if statistic.dtype != torch.float32 or statistic.shape != (3,):
                raise UserError(f"{name} must be float32 [3]; got {describe(statistic)}")
        if not (std > 0).all():
            raise UserError(f"std must be above 0 in every channel; got {std.tolist()}")
        self._images = images
        self._places = torch.arange(len(images), device="cpu") if places is None else places
        self.labels = labels if places is None else labels[places]
        self.augmentation = augmentation
        # One value for each of an image's H*W*3 numbers: broadcasting over three numbers at a time
        # instead takes several times as long.
        pixels = images.shape[1] * images.shape[2]
        self._mean = mean.repeat(pixels).numpy()
        self._std = std.repeat(pixels).numpy()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def images(self) -> Tensor:
        """All images of the subset, uint8 [N, H, W, 3]: a copy in memory, made each time."""
        return self._images[self._places]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._images.shape[1], self._images.shape[2]

    @property
    def device(self) -> torch.device:
        """Where `take` makes batches."""
        return self.labels.device

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Gathers, augments if a generator is given, and normalises the images at ``indices``.

        The result depends on the generator's state and on nothing else, the thread count included.

        Args:
            indices: int64 [B], each in 0..len(self)-1.
            generator: a CPU generator that decides crops, flips and what is cut out; None leaves images as
                they are.

        Returns:
            ``(image - mean) / std``, float32 [B, 3, H, W] in channels_last memory, and labels, int64 [B].

        Raises:
            UserError: ``indices`` is not int64 [B].
            IndexError: an index is out of range.
        """
        return self.take(self.draw(indices, generator).to(self.labels.device))

    def draw(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws what `take` is to do; it takes and raises what `batch` does.

        Returns:
            int64 [1, B], the indices; with a generator [4, B]: the crops' first rows and columns within the
            padded image too, and 1 where the crop is flipped. With a cutout two rows more, the row and the
            column of its centre, and with a policy the seed of each image.
        """
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise UserError(f"indices must be int64 [B]; got {describe(indices)}")
        if ((indices < 0) | (indices >= len(self))).any():
            raise IndexError(
                f"indices must be in 0..{len(self) - 1}; got {int(indices.min())}..{int(indices.max())}"
            )
        if generator is None:
            return indices[None]
        count = len(indices)
        places = torch.randint(
            2 * self.augmentation.padding + 1, (2, count), generator=generator, device="cpu"
        )
        mirrored = torch.zeros_like(indices)
        if self.augmentation.flip:
            mirrored = torch.randint(2, (count,), generator=generator, device="cpu")
        below = self.image_size if self.augmentation.cutout else ()
        if self.augmentation.policy != "none":
            below = (*below, 1 << 62)
        further = [torch.randint(size, (1, count), generator=generator, device="cpu") for size in below]
        return torch.cat([indices[None], places, mirrored[None], *further])

    def take(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that `draw` describes, as `batch` returns it; on the device that the set is on."""
        indices, *augmentation = draw
        pixels = self._images.numpy()[self._places[indices].numpy()]
        if augmentation:
            tops, lefts, mirrored = (row.numpy() for row in augmentation[:3])
            pixels = crop(pixels, tops, lefts, self.augmentation.padding)
            flipped = mirrored.astype(bool)
            pixels[flipped] = pixels[flipped, :, ::-1]
            if self.augmentation.policy != "none":
                pixels = by_policy(pixels, augmentation[-1], self.augmentation.policy)
        normalised = pixels.reshape(len(pixels), self._mean.size).astype(np.float32)
        normalised -= self._mean
        normalised /= self._std
        images = torch.from_numpy(normalised.reshape(pixels.shape)).permute(0, 3, 1, 2)
        if augmentation and self.augmentation.cutout:
            images.masked_fill_(hole(augmentation[3:5], self.augmentation.cutout, self.image_size), 0)
        return images, self.labels[indices]

    def to(self, device: torch.device) -> ImageSet:
        """The set whose `take` makes batches of the same bits on a device.

        Its images are then on the device, unless there are too many, or a policy needs the CPU.
        """
        if device.type == "cpu":
            return self
        fits = fits_device(self._images, self.augmentation)
        return DeviceImageSet(self, device) if fits else CopiedImageSet(self, device)


class DeviceImageSet(ImageSet):
    """An `ImageSet` whose `take` works on a device, without a copy from the host and without waiting.

    `draw` stays on the CPU, so that a generator gives the same batches everywhere.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        vars(self).update(vars(images))
        padding, (height, width) = images.augmentation.padding, images.image_size
        border = (0, 0, *2 * (padding, padding))
        self._padded = F.pad(
            images.images.to(device), border
        )  # [N, H+2p, W+2p, 3]: a crop needs no case for it
        self.labels = images.labels.to(device)
        self._mean_of_channel, self._std_of_channel = (
            torch.from_numpy(of_pixels[:3]).to(device) for of_pixels in (images._mean, images._std)
        )
        self._y, self._x = (torch.arange(size, device=device) for size in (height, width))
        self._across = width - 1 - 2 * self._x  # from a column to its mirror image

    def take(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that `draw` [R, B], on the device, describes."""
        indices, *augmentation = draw
        if augmentation:
            tops, lefts, mirrored = (row[:, None] for row in augmentation[:3])
            rows, columns = tops + self._y, lefts + self._x + mirrored * self._across  # [B, H], [B, W]
        else:
            rows, columns = (i[None] + self.augmentation.padding for i in (self._y, self._x))
        pixels = self._padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        normalised = (pixels.float() - self._mean_of_channel) / self._std_of_channel
        images = normalised.permute(0, 3, 1, 2)
        if augmentation and self.augmentation.cutout:
            images.masked_fill_(hole(augmentation[3:5], self.augmentation.cutout, self.image_size), 0)
        return images, self.labels[indices]


class CopiedImageSet(ImageSet):
    """An `ImageSet` whose batches are made on the CPU and copied to a device."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        vars(self).update(vars(images))
        self._device = device

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self._device

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`take` of `draw`."""
        return self.take(self.draw(indices, generator))

    def take(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that `draw` describes, on the device."""
        images, labels = super().take(draw.cpu())
        return images.to(self._device), labels.to(self._device)


def fits_device(images: Tensor, augmentation: Augmentation) -> bool:
    """Whether batches of these images [M, H, W, 3] can be made on a GPU; by a policy they cannot."""
    return images.nbytes <= DEVICE_BYTES and augmentation.policy == "none"


def by_policy(images: Images, seeds: Tensor, policy: Policy) -> Images:
    """What torchvision's AutoAugment makes of each image.

    Args:
        images: uint8 [B, H, W, 3].
        seeds: int64 [B], what each image's random numbers come from; those of others stay as they are.
        policy: whose.

    Returns:
        uint8 [B, H, W, 3].
    """
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    augment = AutoAugment(AutoAugmentPolicy(policy))
    made = np.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for place, (image, seed) in enumerate(zip(images, seeds.tolist(), strict=True)):
            torch.default_generator.manual_seed(seed)
            made[place] = augment(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    return made


def crop(images: Images, tops: Indices, lefts: Indices, padding: int) -> Images:
    """Crops each image at its own place out of the image with a black border around it.

    Args:
        images: uint8 [B, H, W, 3].
        tops: int64 [B], the crop's first row within the padded image, in 0..2*padding.
        lefts: int64 [B], its first column.
        padding: width of the border in pixels.

    Returns:
        uint8 [B, H, W, 3], a copy.
    """
    count, height, width, _ = images.shape
    border = (padding, padding)
    padded = np.pad(images, ((0, 0), border, border, (0, 0)))
    pixels = padded.view("V3")[..., 0]  # [B, H+2p, W+2p]: moving a pixel as one item is faster than as three
    windows = sliding_window_view(pixels, (height, width), axis=(1, 2))  # [B, 2p+1, 2p+1, H, W], no copy
    return windows[np.arange(count), tops, lefts][..., None].view(np.uint8)


def hole(centres: Sequence[Tensor], side: int, image_size: tuple[int, int]) -> Tensor:
    """Marks the square around each image's centre (row, column) that is within the image.

    Args:
        centres: their rows, int64 [B], each in 0..H-1, and their columns, each in 0..W-1.
        side: of the square, in pixels; it reaches from `side // 2` pixels before the centre.
        image_size: H and W.

    Returns:
        bool [B, 1, H, W].
    """
    marks = []
    for of_images, size in zip(centres, image_size, strict=True):
        offset = torch.arange(size, device=of_images.device) - of_images[:, None] + side // 2
        marks.append((offset >= 0) & (offset < side))
    return (marks[0][:, :, None] & marks[1][:, None])[:, None]


def halves_of(name: str, count: int, seed: int, split: Split = "random") -> tuple[Tensor, Tensor]:
    """The numbers of the training and of the validation images, int64 [count // 2] and the rest.

    Args:
        name: of the data set, for the error.
        count: how many images there are to divide.
        seed: decides the order.
        split: `random` shuffles them first; `ranges` takes them in their order; with `shared` both are all.

    Raises:
        UserError: fewer than two images.
    """
    if count < 2:
        raise UserError(f"{name}: two halves need at least 2 training images; got {count}")
    if split == "random":
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    else:
        order = torch.arange(count, device="cpu")
    if split == "shared":
        return order, order
    return order[: count // 2], order[count // 2 :]


def epoch_order(
    count: int, batch_size: int, generator: torch.Generator, drop_last: bool, visited: int | None = None
) -> list[Tensor]:
    """Shuffles 0..count-1 into index batches, int64 [batch_size], that visit every image once.

    Args:
        count: how many images there are, at least 1.
        batch_size: images in a batch, at least 1; the last batch may hold fewer.
        generator: on the CPU; what it draws decides the order.
        drop_last: leave out the last batch if it is smaller than the others, rather than return it.
        visited: of so many images only, at most; None: of all.

    Raises:
        UserError: count, batch_size or visited below 1, or no batch is left.
    """
    visited = count if visited is None else min(visited, count)
    if visited < 1 or batch_size < 1:
        raise UserError(f"an epoch needs count >= 1 and batch_size >= 1; got {visited} and {batch_size}")
    if drop_last and batch_size > visited:
        raise UserError(f"batch_size must be at most {visited}, the number of images; got {batch_size}")
    order = torch.randperm(count, generator=generator, device="cpu")[:visited]
    if drop_last:
        order = order[: visited - visited % batch_size]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
