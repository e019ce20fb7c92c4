"""Data sets as tensors, and what batches are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as tv

from vpdarts_fast import data
from vpdarts_fast.data import Augmentation, ImageData, ImageSet
from vpdarts_fast.data.batches import CopiedImageSet, DeviceImageSet, crop, halves_of
from vpdarts_fast.errors import UserError


def random_images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def image_data(count: int = 20, **changes: Any) -> ImageData:
    fields: dict[str, Any] = {
        "name": "random",
        "train_images": random_images(count),
        "train_labels": torch.arange(count) % 4,
        "test_images": random_images(6, seed=1),
        "test_labels": torch.arange(6) % 4,
        "classes": ("a", "b", "c", "d"),
        "augmentation": Augmentation(padding=2, flip=True),
    }
    return ImageData(**(fields | changes))


def image_set(images: Tensor, padding: int = 2, flip: bool = True) -> ImageSet:
    """Normalises to the pixel values themselves, so that a batch can be read back."""
    labels = torch.arange(len(images))
    return ImageSet(images, labels, torch.zeros(3), torch.ones(3), Augmentation(padding, flip))


@pytest.fixture
def two_thread_counts() -> Iterator[tuple[int, int]]:
    before = torch.get_num_threads()
    yield 1, 2
    torch.set_num_threads(before)


# --- ImageData ---------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_images() -> None:
    sample = image_data(50)
    pixels = sample.train_images.double().flatten(0, 2)
    torch.testing.assert_close(sample.mean, pixels.mean(0).float())
    torch.testing.assert_close(sample.std, pixels.std(0, correction=0).float())
    assert sample.mean is sample.mean, "computed once"
    assert (sample.num_classes, sample.image_size) == (4, (8, 8))


def test_constant_channel_normalises_to_zero() -> None:
    images = random_images(8)
    images[..., 1] = 77
    sample = image_data(8, train_images=images)
    assert (float(sample.mean[1]), float(sample.std[1])) == (77, 1)
    first, _ = data.split_halves(sample, 0)
    assert (first.batch(torch.arange(4))[0][:, 1] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": random_images(20).float()}, r"train_images must be uint8 .*got float32 \[20, 8"),
        ({"train_images": random_images(20).permute(0, 3, 1, 2)}, r"must be uint8 \[N, H, W, 3\]; got"),
        ({"test_images": random_images(0), "test_labels": torch.arange(0)}, "test_images must hold at least"),
        ({"train_labels": torch.arange(19) % 4}, r"train_labels must be int64 \[20\].*got int64 \[19\]"),
        ({"train_labels": torch.zeros(20)}, r"train_labels must be int64 \[20\].*got float32"),
        ({"train_labels": torch.arange(20) % 5}, r"train_labels must be in 0\.\.3.*got 0\.\.4"),
        ({"test_labels": torch.arange(6) - 1}, r"test_labels must be in 0\.\.3.*got -1\.\.4"),
        ({"test_images": random_images(6, size=9)}, r"test_images must be as large as.*got \[6, 9, 9, 3\]"),
        ({"classes": ()}, "at least one class"),
    ],
)
def test_image_data_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_data(**changes)


@pytest.mark.parametrize("name", ["padding", "cutout"])
def test_negative_pixels_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be 0 pixels or more; got -1"):
        Augmentation(**{"padding": 0, "flip": False, name: -1})


def test_test_images_are_normalised_as_training_images_are() -> None:
    sample = image_data(21)
    batch, labels = sample.test_half().batch(torch.tensor([5, 0]))
    expected = (sample.test_images[[5, 0]].float() - sample.mean) / sample.std
    assert torch.equal(batch, expected.permute(0, 3, 1, 2))
    assert labels.tolist() == [1, 0]


# --- batches -----------------------------------------------------------------------------------


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 4),
    draws=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5),
)
def test_crop_is_torchvisions_pad_and_crop(
    height: int, width: int, padding: int, draws: list[tuple[int, int]]
) -> None:
    places = [(min(top, 2 * padding), min(left, 2 * padding)) for top, left in draws]
    shape = (len(places), height, width, 3)
    images = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    tops, lefts = np.array(places, dtype=np.int64).reshape(-1, 2).T
    cropped = crop(images, tops, lefts, padding)
    assert cropped.shape == shape
    assert cropped.dtype == np.uint8
    for image, (top, left), got in zip(images, places, cropped, strict=True):
        padded = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [padding])
        expected = tv.crop(padded, top, left, height, width).permute(1, 2, 0)
        assert np.array_equal(got, expected.numpy())


def test_all_crops_and_flips_are_equally_likely() -> None:
    size, padding, count = 8, 2, 20_000
    # Red tells the row, green the column, both counted from 1: black is the padding.
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    original = torch.stack([row + 1, column + 1, torch.full_like(row, 9)], dim=-1).to(torch.uint8)
    numbers = torch.zeros(count, dtype=torch.int64)
    batch, _ = image_set(original[None], padding).batch(numbers, torch.Generator().manual_seed(3))
    red, green = batch[:, 0], batch[:, 1]
    middle = slice(padding, size - padding)  # these pixels never come from the padding
    tops = red[:, padding, padding] - 1
    mirrored = green[:, padding, padding] > green[:, padding, padding + 1]
    lefts = torch.where(mirrored, green.flip(2)[:, padding, padding], green[:, padding, padding]) - 1
    assert (green[:, middle, middle].diff(dim=2).abs() == 1).all()
    outcomes = (tops * 5 + lefts) * 2 + mirrored
    counts = outcomes.long().bincount(minlength=50)
    assert len(counts) == 50
    chi_square = ((counts - count / 50) ** 2 / (count / 50)).sum()
    assert chi_square < 85.4, "expected in 999 of 1,000 seeds with 49 degrees of freedom"


def test_augmented_batch_is_a_crop_of_a_known_place_flipped_or_not() -> None:
    images = random_images(30)
    batch, labels = image_set(images).batch(torch.arange(30), torch.Generator().manual_seed(0))
    assert labels.tolist() == list(range(30))
    for image, got in zip(images, batch.to(torch.uint8), strict=True):
        padded = tv.pad(image.permute(2, 0, 1), [2])
        crops = [tv.crop(padded, top, left, 8, 8) for top in range(5) for left in range(5)]
        matches = [torch.equal(got, candidate) or torch.equal(got.flip(2), candidate) for candidate in crops]
        assert sum(matches) == 1


def test_without_flip_nothing_is_mirrored_and_without_padding_nothing_moves() -> None:
    images = random_images(40)
    generator = torch.Generator().manual_seed(0)
    batch, _ = image_set(images, padding=0, flip=False).batch(torch.arange(40), generator)
    assert torch.equal(batch.to(torch.uint8), images.permute(0, 3, 1, 2))
    batch, _ = image_set(images, padding=0, flip=True).batch(torch.arange(40), generator)
    moved = (batch != images.permute(0, 3, 1, 2)).flatten(1).any(1)
    assert torch.equal(batch[moved].flip(3).to(torch.uint8), images.permute(0, 3, 1, 2)[moved])
    assert 5 < moved.sum() < 35


def test_batch_is_normalised_exactly_and_channels_last() -> None:
    sample = image_data(21)
    subset = ImageSet(sample.train_images, sample.train_labels, sample.mean, sample.std, sample.augmentation)
    indices = torch.tensor([20, 3, 3, 0])
    images, labels = subset.batch(indices)
    expected = (sample.train_images[indices].float() - sample.mean) / sample.std
    assert images.dtype == torch.float32
    assert images.shape == (4, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, expected.permute(0, 3, 1, 2))
    assert torch.equal(labels, sample.train_labels[indices])
    theirs = tv.normalize(
        sample.train_images[indices].permute(0, 3, 1, 2) / 255,
        (sample.mean / 255).tolist(),
        (sample.std / 255).tolist(),
    )
    torch.testing.assert_close(images, theirs)


def test_padding_is_black_before_normalisation() -> None:
    images = torch.full((1, 4, 4, 3), 200, dtype=torch.uint8)
    mean, std = torch.tensor([50.0, 100.0, 150.0]), torch.tensor([10.0, 20.0, 40.0])
    subset = ImageSet(images, torch.zeros(1, dtype=torch.int64), mean, std, Augmentation(4, False))
    batch, _ = subset.batch(torch.zeros(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    for channel, values in enumerate([(-5.0, 15.0), (-5.0, 5.0), (-3.75, 1.25)]):
        assert set(batch[:, channel].flatten().tolist()) == set(values)


def test_batches_depend_on_the_generator_alone(two_thread_counts: tuple[int, int]) -> None:
    subset, indices = image_set(random_images(200, size=32), padding=4), torch.arange(200)
    batches = []
    for threads in two_thread_counts:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(7)
        torch.rand(threads)  # the global generator plays no part
        batches.append([subset.batch(indices, generator)[0] for _ in range(2)])
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][0], batches[0][1]), "the generator moves on"


def test_cutout_is_one_square_of_the_mean_in_every_image() -> None:
    """What the field's code cuts out: from side // 2 before the centre, as far as the image goes."""
    height, width, side, count = 6, 9, 4, 3_000
    images = torch.full((1, height, width, 3), 200, dtype=torch.uint8)
    mean, std = torch.tensor([50.0, 100.0, 150.0]), torch.tensor([10.0, 20.0, 40.0])
    subset = ImageSet(images, torch.zeros(1).long(), mean, std, Augmentation(0, False, cutout=side))
    draw = subset.draw(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(0))
    batch, _ = subset.take(draw)
    cut = batch == 0
    assert (cut == cut[:, :1]).all() and (batch[~cut] != 0).all()
    for hole, row, column in zip(cut[:, 0], *draw[4:].tolist(), strict=True):
        expected = torch.zeros(height, width, dtype=torch.bool)
        expected[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = True
        assert torch.equal(hole, expected)
    counts = (draw[4] * width + draw[5]).bincount(minlength=height * width)
    assert len(counts) == 54
    chi_square = ((counts - count / 54) ** 2 / (count / 54)).sum()
    assert chi_square < 90.6, "expected in 999 of 1,000 seeds with 53 degrees of freedom"


def test_without_a_generator_nothing_is_cut_out() -> None:
    images = random_images(3)
    subset = ImageSet(images, torch.arange(3), torch.zeros(3), torch.ones(3), Augmentation(2, True, cutout=3))
    assert torch.equal(subset.batch(torch.arange(3))[0], images.permute(0, 3, 1, 2).float())


def test_a_cutout_leaves_the_crops_and_flips_of_a_batch() -> None:
    """What is drawn for it is drawn behind them."""
    images = random_images(1).clamp_min(1)
    draws, batches = [], []
    for cutout in (0, 3):
        subset = ImageSet(
            images, torch.arange(1), torch.zeros(3), torch.ones(3), Augmentation(0, True, cutout)
        )
        draws.append(subset.draw(torch.zeros(9, dtype=torch.int64), torch.Generator().manual_seed(1)))
        batches.append(subset.take(draws[-1])[0])
    assert torch.equal(draws[0], draws[1][:4])
    assert torch.equal(batches[0].where(batches[1] != 0, torch.zeros(())), batches[1])


def test_a_subset_has_the_images_of_its_places_and_copies_none() -> None:
    images, places = random_images(9), torch.tensor([7, 7, 0])
    of_channel = torch.zeros(3), torch.ones(3)
    subset = ImageSet(images, torch.arange(9), *of_channel, Augmentation(0, False), places)
    assert (len(subset), subset.labels.tolist()) == (3, [7, 7, 0])
    assert torch.equal(subset.images, images[places])
    images[0] = 3
    assert (subset.batch(torch.tensor([2]))[0] == 3).all()


def test_batches_leave_the_stored_images_alone() -> None:
    images = random_images(10)
    before = images.clone()
    batch, _ = image_set(images, padding=0).batch(torch.arange(10), torch.Generator().manual_seed(0))
    batch.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_empty_batch(generator: torch.Generator | None) -> None:
    images, labels = image_set(random_images(3)).batch(torch.arange(0), generator)
    assert (images.shape, labels.shape) == ((0, 3, 8, 8), (0,))


def test_bad_indices_are_refused() -> None:
    subset = image_set(random_images(3))
    for indices in ([0, 3], [-1, 0]):
        with pytest.raises(IndexError, match=rf"in 0\.\.2; got {indices[0]}\.\.{indices[1]}"):
            subset.batch(torch.tensor(indices))
    for wrong in (torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True])):
        with pytest.raises(UserError, match=r"indices must be int64 \[B\]"):
            subset.batch(wrong)


def test_image_set_checks_its_arguments() -> None:
    images, labels, augmentation = random_images(3), torch.arange(3), Augmentation(0, False)
    with pytest.raises(UserError, match=r"labels must be int64 \[3\]"):
        ImageSet(images, labels[:2], torch.zeros(3), torch.ones(3), augmentation)
    with pytest.raises(UserError, match=r"mean must be float32 \[3\]; got float32 \[1\]"):
        ImageSet(images, labels, torch.zeros(1), torch.ones(3), augmentation)
    with pytest.raises(UserError, match="std must be above 0"):
        ImageSet(images, labels, torch.zeros(3), torch.zeros(3), augmentation)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("cutout", [0, 5])
def test_batches_on_a_device_are_the_same_bits(padding: int, flip: bool, cutout: int) -> None:
    """`meta` has no values, so the CPU stands for a GPU; augmented or not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 7, 9, 3), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])
    subset = ImageSet(images, torch.arange(50), mean, std, Augmentation(padding, flip, cutout))
    there = DeviceImageSet(subset, torch.device("cpu"))
    assert len(there) == 50
    indices = torch.randint(50, (400,), generator=generator)
    for seeded in (False, True):
        batches = [
            some.batch(indices, torch.Generator().manual_seed(1) if seeded else None)
            for some in (subset, there)
        ]
        assert torch.equal(batches[0][0], batches[1][0]) and torch.equal(batches[0][1], batches[1][1])
        assert batches[1][0].is_contiguous(memory_format=torch.channels_last)
    assert subset.to(torch.device("cpu")) is subset
    assert isinstance(subset.to(torch.device("meta")), DeviceImageSet)


@pytest.mark.parametrize("why", ["a policy", "more than a GPU is given"])
def test_what_a_device_cannot_make_is_copied_to_it(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a GPU: the same bits."""
    augmentation = Augmentation(2, True, 3, "cifar10" if why == "a policy" else "none")
    if why != "a policy":
        monkeypatch.setattr("vpdarts_fast.data.batches.DEVICE_BYTES", 100)
    images = random_images(20)
    subset = ImageSet(images, torch.arange(20), torch.zeros(3), torch.ones(3), augmentation)
    there = subset.to(torch.device("meta"))
    assert isinstance(there, CopiedImageSet) and there.device == torch.device("meta")
    assert there.batch(torch.arange(4))[0].device == torch.device("meta")
    here = CopiedImageSet(subset, torch.device("cpu"))
    made = [some.batch(torch.arange(20), torch.Generator().manual_seed(1)) for some in (subset, here)]
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    assert not image_data(train_images=images, augmentation=augmentation).capturable


# --- split_halves and epoch_order --------------------------------------------------------------


def test_halves_cover_the_training_images_once() -> None:
    count = 21
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3).contiguous()
    labels = torch.arange(count)
    sample = image_data(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        classes=tuple("abcdefghijklmnopqrstu"),
    )
    training, validation = data.split_halves(sample, 0)
    assert (len(training), len(validation)) == (10, 11)
    seen = torch.cat([training.labels, validation.labels])
    assert torch.equal(seen.sort().values, labels)
    assert not torch.equal(seen, labels), "shuffled"
    assert torch.equal(training.images[:, 0, 0, 0].long(), training.labels), "images go with their labels"
    batch, _ = training.batch(torch.tensor([0]))
    expected = (training.images[0, 0, 0].float() - sample.mean) / sample.std
    assert torch.equal(batch[0, :, 0, 0], expected)
    again, _ = data.split_halves(sample, 0)
    other, _ = data.split_halves(sample, 1)
    assert torch.equal(again.labels, training.labels)
    assert not torch.equal(other.labels, training.labels)


def test_halves_by_order_and_halves_that_share_all_images() -> None:
    first, second = halves_of("any", 5, 3, "ranges")
    assert (first.tolist(), second.tolist()) == ([0, 1], [2, 3, 4])
    for half in halves_of("any", 5, 3, "shared"):
        assert half.tolist() == [0, 1, 2, 3, 4]
    sample = image_data(7)
    training, validation = data.split_halves(sample, 0, "ranges")
    assert torch.equal(training.images, sample.train_images[:3])
    assert torch.equal(validation.images, sample.train_images[3:])


def test_one_image_has_no_halves() -> None:
    with pytest.raises(UserError, match="at least 2 training images; got 1"):
        data.split_halves(image_data(1), 0)


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), drop_last=st.booleans())
def test_epoch_order_visits_each_image_once(count: int, batch_size: int, drop_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    if drop_last and batch_size > count:
        with pytest.raises(UserError, match=f"at most {count}.*got {batch_size}"):
            data.epoch_order(count, batch_size, generator, drop_last)
        return
    batches = data.epoch_order(count, batch_size, generator, drop_last)
    sizes = [len(batch) for batch in batches]
    rest = count % batch_size
    assert sizes == [batch_size] * (count // batch_size) + ([rest] if rest and not drop_last else [])
    seen = torch.cat(batches)
    assert len(set(seen.tolist())) == len(seen)
    assert seen.dtype == torch.int64
    assert seen.min() >= 0
    assert seen.max() < count


@pytest.mark.parametrize(("visited", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (1, [1]), (30, [4] * 5)])
def test_an_epoch_of_a_part_of_the_images(visited: int, sizes: list[int]) -> None:
    """The first of those that the whole epoch visits in this order."""
    whole, part = (
        data.epoch_order(20, 4, torch.Generator().manual_seed(0), False, count) for count in (None, visited)
    )
    assert list(map(len, part)) == sizes
    assert torch.equal(torch.cat(part), torch.cat(whole)[:visited])


def test_epoch_order_shuffles_anew_and_reproducibly() -> None:
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    epochs = [data.epoch_order(40, 40, first, False)[0] for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0], data.epoch_order(40, 40, second, False)[0])


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (5, 0), (5, -2)])
def test_epoch_order_refuses(count: int, batch_size: int) -> None:
    with pytest.raises(UserError, match=f"got {count} and {batch_size}"):
        data.epoch_order(count, batch_size, torch.Generator(), False)
