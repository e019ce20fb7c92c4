"""Searches on files of images, with augmentation, losses, metrics and stems by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encoded, picture, random_images, write_folder, write_zip
from search_calls import outcome
from search_commands import TINY, error_of, stop_after
from torch.utils.data import TensorDataset

import vpdarts_fast
from vpdarts_fast.data import Augmentation, ImageData, MappedImages, load
from vpdarts_fast.errors import UserError
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.config import contradictions
from vpdarts_fast.search.images import as_set, sized
from vpdarts_fast.search.losses import losses_of
from vpdarts_fast.search.running import prepared

pytestmark = pytest.mark.usefixtures("one_thread")

Files = dict[str, bytes]

CLASSES = {"bird": 24, "cat": 12, "dog": 8}
"""Unbalanced, with so many images."""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    names = [f"{name}/{i}.png" for name, count in CLASSES.items() for i in range(count)]
    return {name: encoded(picture(number, (20, 24))) for number, name in enumerate(names)}


def flags(place: Path, *more: str) -> list[str]:
    cache = str(place.parent / "cache")
    four = ["--channels", "4", "--cells-per-stage", "1"]
    return [*TINY, *four, "--dataset", "folder", "--data", str(place), "--cache", cache, *more]


def test_a_search_on_an_archive_with_everything_else_by_name(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped and continued from elsewhere it is the same, to the last bit."""
    place = write_zip(tmp_path / "pets.zip", files)
    by_name = ["--image-size", "16", "--augment", "autoaugment", "--cutout", "4", "--loss", "class-weights",
               "--metric", "balanced-accuracy"]  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*flags(place, *by_name), "--out", str(whole)]) == 0
    said = capsys.readouterr()
    assert "decoding the images of pets: 44" in said.out and "training and" in said.out
    assert "images of 16x16, 3 classes" in said.out
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        assert main([*flags(place, *by_name), "--out", str(stopped)]) == 130
    (tmp_path / "moved").mkdir()
    moved = place.rename(tmp_path / "moved" / "pets.zip")
    assert main(["--resume", str(stopped), "--data", str(moved), "--cache", str(tmp_path / "other")]) == 0
    outcomes = [outcome(folder) for folder in (whole, stopped)]
    for each in outcomes:
        del each["checkpoint"]["config"]  # where things lie
    assert outcomes[0] == outcomes[1]
    epoch = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    accuracies = {value for row in epoch["importance"]["accuracy"] for value in row}
    assert all(0 <= value <= 100 for value in accuracies)
    config = SearchConfig.read(whole / "config.json")
    assert (config.images.cutout, config.search.metric) == (4, "balanced-accuracy")
    assert config.space.stem == "plain"


def test_large_images_are_halved_and_their_snapshots_analysed(files: Files, tmp_path: Path) -> None:
    from vpdarts_fast.analysis.kendall import main as analyse

    place = write_folder(tmp_path / "pets", files)
    arguments = flags(
        place, "--image-size", "64", "--snapshots", "--warmup-epochs", "0", "--pruning-epochs", "1"
    )
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert SearchConfig.read(tmp_path / "run" / "config.json").space.stem == "halving"
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert analyse([str(tmp_path / "run"), "--images", "8", "--threads", "1"]) == 0


def test_images_by_name_from_python(files: Files, tmp_path: Path) -> None:
    place = write_folder(tmp_path / "pets", files)
    settings: dict[str, Any] = {"data": str(place), "cache": str(tmp_path / "cache"), "image_size": 16}
    _, data, _ = prepared(
        SearchConfig().replaced(dataset="folder", **{**settings, "data": place, "cache": tmp_path / "cache"}),
        quiet=True,
    )
    assert isinstance(data, MappedImages) and data.augmentation == Augmentation(2, True)
    found = vpdarts_fast.search_cells(
        "folder", folder=tmp_path / "run", progress="none", channels=4, cells_per_stage=1, warmup_epochs=0,
        pruning_epochs=1, finalists=0, batch_size=16, loss=None, **settings,
    )  # fmt: skip
    assert found.num_classes == 3 and found.config.images.cache == tmp_path / "cache"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--image-size", "8"], "--image-size must be at least 16; got 8"),
        (["--image-size", "16", "--cutout", "16"], "--cutout must be smaller than the images, 16x16 pixels"),
        (["--cutout", "-1"], "--cutout must be at least 0; got -1"),
        (["--label-smoothing", "1"], "--label-smoothing must be in"),
        (["--class-weight-power", "-1"], "--class-weight-power must be at least 0; got -1"),
        (["--focal-gamma", "nan"], "--focal-gamma must be"),
        (["--metric", "macro-f1", "--evaluation", "racing"], "and --metric macro-f1 is one of classes"),
        (["--metric", "macro-f1", "--criterion", "taylor"], "--metric macro-f1 is measured"),
        (["--dataset", "folders"], "unknown data set 'folders'; expected one of digits"),
        (["--dataset", "digits", "--image-size", "20"], "the images of digits are 16x16; got 20"),
    ],
)  # fmt: skip
def test_what_the_command_line_refuses(
    more: list[str],
    complaint: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = write_folder(tmp_path / "pets", files)
    try:
        status: Any = main(flags(place, *more, "--out", str(tmp_path / "run")))
    except SystemExit as stopped:  # of the parser, with a box around what it says
        status = stopped.code
    said = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert status == 2 and complaint in said
    assert not (tmp_path / "run").exists()


def test_a_tiny_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    place = write_folder(tmp_path / "pets", {name: encoded(picture(i)) for i, name in enumerate(names)})
    wrong = error_of(flags(place, "--out", str(tmp_path / "run")), capsys)
    assert (
        f"--dataset folder --data {place} (pets) has too few training images: a search needs at least 4"
        in wrong
    )


def test_a_file_that_cannot_be_decoded_is_named_on_the_command_line(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_folder(tmp_path / "pets", {**files, "cat/x.png": b"text"})
    wrong = error_of(flags(place, "--out", str(tmp_path / "run")), capsys)
    assert "cat/x.png (no file of JPEG" in wrong and "--skip-corrupt" in wrong
    config = SearchConfig().replaced(
        dataset="folder", data=place, cache=place.parent / "cache", skip_corrupt=True, image_size=16
    )
    assert len(prepared(config, quiet=True)[1].train_labels) > 20


# The settings' names --------------------------------------------------------------------------------------


def data_of(size: int) -> ImageData:
    images, labels = random_images(12, size), torch.tensor([0] * 9 + [1] * 3)
    return ImageData("some", images, labels, images, labels, ("a", "b"), Augmentation(2, False))


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ("standard", Augmentation(2, False, 5)),
        ("none", Augmentation(0, False, 5)),
        ("crop-flip", Augmentation(8, True, 5)),
        ("autoaugment", Augmentation(8, True, 5, "imagenet")),
    ],
)
def test_given_images_are_augmented_as_asked(augment: str, expected: Augmentation) -> None:
    config = SearchConfig().replaced(dataset="given", augment=augment, cutout=5)
    augmented = as_set(config, data_of(64))
    assert isinstance(augmented, ImageData) and augmented.augmentation == expected
    assert augmented.capturable == (augment != "autoaugment")


def test_images_with_transforms_of_their_own_are_not_augmented() -> None:
    images = vpdarts_fast.data.DatasetImages(TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 2))
    with pytest.raises(UserError, match=r"without transforms of their own, which TensorDataset\s+has"):
        as_set(SearchConfig().replaced(dataset="given", cutout=3), images)
    assert as_set(SearchConfig().replaced(dataset="given"), images) is images


def test_autoaugment_is_the_same_for_the_same_draw() -> None:
    """And leaves PyTorch's generator where it was."""
    data = load("digits", augment="autoaugment", cutout=3)
    half, _ = data.halves(0)
    draw = half.draw(torch.arange(32), torch.Generator().manual_seed(0))
    assert draw.shape == (7, 32)
    torch.manual_seed(5)
    batches = [half.take(draw)[0], half.take(draw[:, 16:])[0]]
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3)) and torch.equal(batches[0][16:], batches[1])
    plain = dataclasses.replace(data, augmentation=Augmentation(2, True, 3)).halves(0)[0]
    differs = (plain.take(draw[:6])[0] != batches[0]).flatten(1).any(1)
    assert 16 < int(differs.sum()) <= 32


def test_the_stem_follows_the_size_of_the_images_unless_it_is_named() -> None:
    auto = SearchConfig()
    assert [sized(auto, data_of(size)).space.stem for size in (16, 64, 128)] == [
        "plain",
        "halving",
        "quartering",
    ]
    assert sized(auto.replaced(stem="plain"), data_of(64)).space.stem == "plain"
    assert sized(auto.replaced(space="darts"), data_of(64)).space.stem == "halving"


def test_a_stem_that_is_left_to_the_images_contradicts_none() -> None:
    """But other settings that are left to something do."""
    auto = SearchConfig()
    plain, halving = (auto.replaced(stem=stem) for stem in ("plain", "halving"))
    assert contradictions(auto, plain) == contradictions(plain, auto) == []
    assert contradictions(plain, halving) == ["--stem: the run has plain, asked for halving"]
    for name in ("max_images", "image_size"):
        assert len(contradictions(auto, auto.replaced(**{name: 64}))) == 1
        assert len(contradictions(auto.replaced(**{name: 64}), auto)) == 1


def test_losses_by_their_names() -> None:
    logits, labels = torch.randn(12, 2, dtype=torch.float64), data_of(16).train_labels
    cpu, mean = torch.device("cpu"), torch.nn.functional.cross_entropy
    found = {}
    for name in ("cross-entropy", "given", "label-smoothing", "class-weights", "focal"):
        config = SearchConfig().replaced(loss=name)
        loss, objective = losses_of(config, data_of(16), mean, cpu)
        found[name] = float(loss(logits, labels))
        measured = objective.losses(logits, labels)
        assert measured.shape == (12,)
        if name != "class-weights":
            assert float(measured.mean()) == pytest.approx(found[name])
    assert found["given"] == found["cross-entropy"] == pytest.approx(float(mean(logits, labels)))
    assert found["label-smoothing"] == pytest.approx(float(mean(logits, labels, label_smoothing=0.1)))
    weights = torch.tensor([12 / 18, 12 / 6], dtype=torch.float64)
    assert found["class-weights"] == pytest.approx(float(mean(logits, labels, weights)))
    assert len(set(found.values())) == 4
