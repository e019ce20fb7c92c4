"""Augmented batches of 256 images of 32x32: images a second, and times torchvision's per-image way."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torchvision import transforms

from vpdarts_fast.data import Augmentation, ImageSet

pytestmark = pytest.mark.full

BATCH, SIZE, PADDING = 256, 32, 4
MEAN, STD = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (10_000, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)


def verify(subset: ImageSet, images: Tensor, indices: Tensor) -> None:
    """Every image of a batch is one of the 162 crops and flips that torchvision could have made."""
    batch, _ = subset.batch(indices, torch.Generator().manual_seed(0))
    for got, index in zip(batch, indices, strict=True):
        padded = torch.nn.functional.pad(images[index].permute(2, 0, 1), [PADDING] * 4)
        windows = padded.unfold(1, SIZE, 1).unfold(2, SIZE, 1).permute(1, 2, 3, 4, 0).flatten(0, 1)
        candidates = (torch.cat([windows, windows.flip(2)]).float() - MEAN) / STD
        assert (candidates == got.permute(1, 2, 0)).flatten(1).all(1).sum() == 1


def seconds_per_image_of_torchvision(images: Tensor) -> float:
    """Median over five rounds of 64 images through the usual transforms."""
    transform = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(SIZE, PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((MEAN / 255).tolist(), (STD / 255).tolist()),
        ]
    )
    rounds = []
    for _ in range(5):
        start = perf_counter()
        torch.stack([transform(image) for image in images[:64].numpy()])
        rounds.append(perf_counter() - start)
    return median(rounds) / 64


def test_augmented_batch(benchmark: BenchmarkFixture, images: Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.int64)
    subset = ImageSet(images, labels, MEAN, STD, Augmentation(PADDING, flip=True))
    indices = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:BATCH]
    verify(subset, images, indices[:16])
    generator = torch.Generator().manual_seed(2)
    benchmark(subset.batch, indices, generator)
    if benchmark.stats is not None:  # None under --benchmark-disable
        seconds = benchmark.stats.stats.median / BATCH
        benchmark.extra_info["images_per_second"] = round(1 / seconds)
        benchmark.extra_info["x_torchvision"] = round(seconds_per_image_of_torchvision(images) / seconds, 1)
