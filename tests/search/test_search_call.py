"""A search as a call: on images of any kind, with callbacks, stopped and resumed, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from search_calls import SMALL, outcome, pixels, stop_at
from search_commands import TINY, error_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

import vpdarts_fast
from vpdarts_fast.data import Augmentation, DatasetImages, ImageData, load
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import Interrupted
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.observer import OpsEvaluated

pytestmark = pytest.mark.usefixtures("one_thread")


class Noisy(Dataset[Any]):
    """Transforms that draw from all three generators."""

    def __init__(self, images: Dataset[Any], count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        noise = torch.rand(()) + random.random() + np.random.rand()
        return image + 0.1 * noise, int(label)


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


@contextlib.contextmanager
def unchanged_generators() -> Any:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    yield
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_search_on_any_data_set_is_stopped_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    heard: dict[str, list[Any]] = {"epochs": [], "evaluations": [], "ends": []}
    settings = SMALL | {
        "finalists": 2, "finalist_steps": 1, "finalist_budget": 4, "finalist_channels": 2,
        "finalist_cells_per_stage": 1, "loss": smooth,
    }  # fmt: skip
    data = Noisy(pixels(), 32)
    result = vpdarts_fast.search_cells(
        data,
        folder=tmp_path / "whole",
        on_epoch=heard["epochs"].append,
        on_evaluation=heard["evaluations"].append,
        on_end=heard["ends"].append,
        **settings,
    )
    assert [metrics["epoch"] for metrics in heard["epochs"]] == [0, 1] and heard["ends"] == [result]
    first, last = heard["evaluations"]
    assert isinstance(first, OpsEvaluated) and (first.epoch, last.epoch) == (1, 2)
    assert last.leave_one_out and last.leave_one_out.images == 8 and last.importance.score.shape == (6, 5)
    assert str(first.genotype) == heard["epochs"][1]["genotype"]
    assert str(result.genotype) == result.result["architecture"] and result.folder == tmp_path / "whole"
    assert result.network()(torch.zeros(2, 3, 8, 8))[0].shape[-1] == 3

    folder = tmp_path / "parts"
    random.seed(5)
    torch.manual_seed(6)
    for call, resume in ((1, False), (3, True), (7, True)):  # in steps, in an evaluation, among the finalists
        with pytest.raises(Interrupted):
            vpdarts_fast.search_cells(data, folder=folder, resume=resume, stop=stop_at(call), **settings)
    vpdarts_fast.search_cells(data, folder=folder, resume=True, **settings)
    assert outcome(folder) == outcome(tmp_path / "whole")
    again = vpdarts_fast.search_cells(data, folder=folder, resume=True, progress="none", loss=smooth)
    assert again.genotype == result.genotype


def test_a_loss_of_ones_own_has_to_be_given_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the search would go on with another one."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, loss in ((own, smooth), (other, None)):
        with pytest.raises(Interrupted):
            vpdarts_fast.search_cells("digits", folder=folder, stop=stop_at(2), loss=loss, **SMALL)
    with pytest.raises(UserError, match="the loss of this run has no name"):
        vpdarts_fast.search_cells("digits", folder=own, resume=True)
    assert main(["--resume", str(own)]) == 2
    assert "the loss of this run has no name" in capsys.readouterr().err
    with pytest.raises(UserError, match="--loss: the run has cross-entropy, asked for given"):
        vpdarts_fast.search_cells("digits", folder=other, resume=True, loss=smooth)
    assert main([*TINY, "--loss", "given", "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_call_comes_to_what_the_command_line_does(tmp_path: Path) -> None:
    fewer = ["--max-images", "24", "--pruning-epochs", "1", "--batch-size", "8", "--seed", "3"]
    assert main([*TINY, *fewer, "--out", str(tmp_path / "command")]) == 0
    settings = {"max_images": 24, "channels": 2, "warmup_epochs": 1, "pruning_epochs": 1, "batch_size": 8}
    common: dict[str, Any] = {**settings, "threads": 1, "finalists": 0, "seed": 3, "progress": "none"}
    vpdarts_fast.search_cells("digits", folder=tmp_path / "call", **common)
    assert outcome(tmp_path / "call") == outcome(tmp_path / "command")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("call", "command")]
    assert configs[0] == configs[1]


def test_images_and_a_data_set_that_gives_the_same_come_to_the_same(tmp_path: Path) -> None:
    digits = load("digits").subset(torch.arange(32))
    digits = dataclasses.replace(digits, augmentation=Augmentation(0, False))
    images = (digits.train_images.float() - digits.mean) / digits.std
    data = TensorDataset(images.permute(0, 3, 1, 2), digits.train_labels)
    for name, given in (("tensors", digits), ("items", DatasetImages(data, num_classes=10))):
        vpdarts_fast.search_cells(given, folder=tmp_path / name, cuda_graphs=False, **SMALL)
    one, other = outcome(tmp_path / "tensors"), outcome(tmp_path / "items")
    assert one["checkpoint"].pop("images") != other["checkpoint"].pop("images")
    assert one == other


def test_items_are_drawn_alike_and_leave_no_trace() -> None:
    with unchanged_generators():
        half = DatasetImages(Noisy(pixels(), 32)).halves(0)[0]
        indices = torch.arange(4)
        first = half.batch(indices, torch.Generator().manual_seed(1))
    random.seed(0)
    torch.manual_seed(3)
    again = half.batch(indices, torch.Generator().manual_seed(1))
    other = half.batch(indices, torch.Generator().manual_seed(2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert torch.equal(half.batch(indices)[0], half.batch(indices)[0]), "as evaluations take them"
    draw = half.draw(indices, torch.Generator().manual_seed(1))
    assert torch.equal(half.take(draw[:, 2:])[0], first[0][2:]), "an item does not depend on those before it"


def test_a_loader_brings_its_batches(tmp_path: Path) -> None:
    sizes: set[int] = set()

    def collate(items: list[Any]) -> Any:
        sizes.add(len(items))
        images, labels = default_collate(items)
        return images * 2, labels

    loader = DataLoader(pixels(), batch_size=5, shuffle=True, collate_fn=collate)
    settings = {name: value for name, value in SMALL.items() if name != "batch_size"}
    result = vpdarts_fast.search_cells(loader, folder=tmp_path / "run", **settings)
    assert result.config.optimisers.batch_size == 5 and {5, 8} <= sizes


class Streaming(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pixels())


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return pixels()[0]


ONE = torch.zeros(3, 8, 8)
BAD: dict[str, tuple[Any, str]] = {
    "iterable": (Streaming(), "can only be iterated"),
    "a loader of one": (DataLoader(Streaming()), "can only be iterated"),
    "no length": (Endless(), "has no length"),
    "nothing": ([], "has no images"),
    "one thing": ([ONE] * 8, "an item must be (image, label); item 0 is float32 [3, 8, 8]"),
    "three things": ([(ONE, 0, 1)] * 8, "item 0 is a tuple of 3"),
    "no tensor": ([(np.zeros((8, 8, 3)), 0)] * 8, "item 0 has a ndarray. torchvision.transforms.ToTensor()"),
    "grey": ([(ONE[:1], 0)] * 8, "item 0 has float32 [1, 8, 8]. torchvision.transforms.Grayscale(3)"),
    "channels last": ([(ONE.permute(1, 2, 0), 0)] * 8, "Its channels come first"),
    "bytes": ([(ONE.byte(), 0)] * 8, "ConvertImageDtype(torch.float32)"),
    "double": ([(ONE.double(), 0)] * 8, "item 0 has float64 [3, 8, 8]. image.float() makes one"),
    "sizes": ([(ONE, 0), (torch.zeros(3, 8, 9), 1)] * 4, "must have one size, 8x8 as the first one; got 8x9"),
    "no label": ([(ONE, "cat")] * 8, "a label must be a whole number; item 0 has 'cat'"),
    "one-hot": ([(ONE, torch.ones(3))] * 8, "a label must be a whole number; item 0 has float32 [3]"),
    "below": ([(ONE, label) for label in (0, -1)] * 8, "got -1..0"),
    "above": (
        TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) * 10**7), "labels must be in 0..999,999"
    ),
    "one class": ([(ONE, 0)] * 8, "the data set that was given (list) has one class (0)"),
    "one of two": (DatasetImages([(ONE, 1)] * 8), "all 8 training images are of the class '1'"),
    "few": (pixels(3), "too few training images"),
    "no batch": (DataLoader(pixels(), collate_fn=lambda items: items), "its items make no batch"),
    "another batch": (
        DataLoader(pixels(), collate_fn=lambda items: (torch.ones(2), torch.ones(3))),
        "a batch must be (images float32 [8, 3, 8, 8], labels int64 [8]); got (float32 [2], float32 [3])",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_refused_before_there_is_a_folder(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, complaint = BAD[case]
    with pytest.raises(UserError) as error:
        vpdarts_fast.search_cells(given, **SMALL)
    assert complaint in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_turns_up_later_is_told(tmp_path: Path) -> None:
    images, labels = pixels(64).tensors
    labels = labels.clone()
    labels[5] = 7
    data = types.SimpleNamespace(images=images, labels=labels, targets=(labels % 7).tolist())

    class Lying(Dataset[Any]):
        targets, classes = data.targets, ["a", "b", "c"]

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            return data.images[index], data.labels[index]

    with pytest.raises(UserError, match=r"Lying: labels must be in 0\.\.2, .* got 0\.\.7"):
        vpdarts_fast.search_cells(Lying(), folder=tmp_path / "run", **SMALL)


def test_labels_are_found_without_reading_where_they_can_be() -> None:
    read: list[int] = []

    class Counting(Noisy):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    data: Any = Counting(pixels(), 32)
    assert DatasetImages(data).train_labels.tolist() == [index % 3 for index in range(32)]
    assert sorted(read) == list(range(32)), "each once"
    data.targets, data.classes = [index % 3 for index in range(32)], ["a", "b", "c", "d"]
    read.clear()
    half = torch.utils.data.Subset(torch.utils.data.ConcatDataset([data, data]), range(8, 64))
    images = DatasetImages(half, name="both")
    assert len(read) == 8, "to see whether the data set means these"
    assert images.classes == ("a", "b", "c", "d") and images.name == "both"
    assert images.train_labels.tolist() == [index % 32 % 3 for index in range(8, 64)]
    few = images.subset(torch.tensor([7, 1]))
    assert few.train_labels.tolist() == [15 % 3, 9 % 3] and len(few.halves(0)[0]) == 1
    assert images.digest() == DatasetImages(half).digest() != few.digest()
    data.target_transform = lambda label: label
    read.clear()
    DatasetImages(data)
    assert len(read) == 32, "what it makes of targets is not known"


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "a preset": ({"preset": "fast"}, "unknown preset 'fast'; expected one of quick, cpu, paper"),
    "a name": ({"images": "digit"}, "unknown data set 'digit'; expected one of digits"),
    "a method": ({"method": "fast"}, "--method fast is not known"),
    "a setting": ({"chanels": 3}, "no setting is called --chanels"),
    "a value": ({"evaluation": "quick"}, "evaluation must be one of full, racing"),
    "a number": ({"channels": "many"}, "--channels must be a whole number; got 'many'"),
    "two images": ({"images": "digits", "dataset": "digits"}, "give either images or dataset="),
    "none": ({"dataset": "given"}, "given to vpdarts_fast.search_cells"),
    "progress": ({"progress": "some"}, "progress must be 'auto' or 'none'; got 'some'"),
    "resume": ({"resume": True}, "resume=True needs the folder of the run"),
    "no run": ({"resume": True, "folder": "nowhere"}, "is not the folder of a run"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, complaint = CALLS[case]
    with pytest.raises(UserError) as error:
        vpdarts_fast.search_cells(**{"progress": "none", **arguments})
    assert complaint in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_begun_keeps_its_settings_and_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "run", pixels()
    with pytest.raises(Interrupted, match=r"continue with vpdarts_fast\.search_cells\(\.\.\., folder='"):
        vpdarts_fast.search_cells(data, folder=folder, stop=stop_at(1), **SMALL)
    again: dict[str, Any] = {"folder": folder, "resume": True, "progress": "none"}
    with pytest.raises(UserError, match=r"--channels: the run has 2, asked for 3\n.*--preset: the run has"):
        vpdarts_fast.search_cells(data, channels=3, preset="paper", **again)
    with pytest.raises(UserError, match="--dataset: the run has given, asked for digits"):
        vpdarts_fast.search_cells("digits", **again)
    with pytest.raises(UserError, match=r"other images .* name the data set that the run began with, or"):
        vpdarts_fast.search_cells(pixels(classes=2), **again)
    with pytest.raises(UserError, match="which has to be given them again"):
        vpdarts_fast.search_cells(**again)
    assert "given to vpdarts_fast.search_cells" in error_of(["--resume", str(folder)], capsys)

    def fail(metrics: dict[str, Any]) -> None:
        raise RuntimeError("a callback")

    with pytest.raises(RuntimeError, match="a callback"):
        vpdarts_fast.search_cells(data, on_epoch=fail, **again)
    assert checkpoint.load(folder / "checkpoint.pt")["epoch"] == 1
    vpdarts_fast.search_cells(DataLoader(data, batch_size=3), **again)
    vpdarts_fast.search_cells(data, folder=tmp_path / "whole", **SMALL)
    assert outcome(folder) == outcome(tmp_path / "whole")


# What is shown ----------------------------------------------------------------------------------------------


def test_nothing_is_printed_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vpdarts_fast.search_cells(pixels(), folder=tmp_path / "quiet", **SMALL)
    assert capsys.readouterr() == ("", "")
    vpdarts_fast.search_cells(pixels(), folder=tmp_path / "loud", **SMALL | {"progress": "auto"})
    assert capsys.readouterr().out == (tmp_path / "loud" / "log.txt").read_text()
    logs = [(tmp_path / name / "log.txt").read_text().splitlines() for name in ("quiet", "loud")]
    assert len(logs[0]) == len(logs[1]) and "TensorDataset: 16 training" in "\n".join(logs[0])


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_bars_where_it_has_widgets(
    widgets: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    class Output(contextlib.nullcontext[None]):
        def clear_output(self, wait: bool) -> None:
            shown.append(self)

        def close(self) -> None:
            shown.append("closed")

    fakes = {"IPython": {}, "IPython.display": {"display": shown.append}, "ipywidgets": {"Output": Output}}
    for name, values in fakes.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    find_spec = importlib.util.find_spec
    if not widgets:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else find_spec(name)
        )
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    vpdarts_fast.search_cells(pixels(), folder=tmp_path / "run", **SMALL | {"progress": "auto"})
    printed = capsys.readouterr().out
    assert any(isinstance(one, Output) for one in shown) == ("closed" in shown) == widgets
    texts = "".join(str(getattr(one, "text", "")) for one in shown)
    assert ("found: " in printed, "found: " in texts) == (not widgets, widgets)


def test_images_in_memory_are_what_a_search_takes(digits: ImageData) -> None:
    few = digits.subset(torch.tensor([3, 1]))
    assert isinstance(few, ImageData) and torch.equal(few.train_labels, digits.train_labels[[3, 1]])
    assert few.digest() == digits.subset(torch.tensor([3, 1])).digest() != digits.digest()
    assert [len(half) for half in digits.subset(torch.arange(5)).halves(0)] == [2, 3]
