"""Settings and data that cannot make a search are refused at its start, in the words of the flags."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_commands import TINY, error_of
from torch import Tensor

import vpdarts_fast
from vpdarts_fast.benchmark_table import COLUMNS, BenchmarkTable, official_architectures
from vpdarts_fast.data import Augmentation, ImageData
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.validation import checked_batch
from vpdarts_fast.runtime import machine
from vpdarts_fast.search import PRESETS, RunFolder, Search, preflight
from vpdarts_fast.spaces.nas_bench_201 import NasBench201, Supernet, pixels_of_last_stage
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES

pytestmark = pytest.mark.usefixtures("one_thread")


# Images, classes, batches.


def image_data(count: int = 34, size: int = 4, classes: int = 2, labels: int | None = None) -> ImageData:
    random = np.random.RandomState(0)
    images = torch.from_numpy(random.randint(0, 256, (count, size, size, 3), dtype=np.uint8))
    labels_ = torch.arange(count) % (labels or classes)
    names = tuple(f"class {number}" for number in range(classes))
    return ImageData("tiny", images, labels_, images[:1], labels_[:1], names, Augmentation(1, True))


def write_npz(path: Path, data: ImageData) -> Path:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: getattr(data, name).numpy() for name in names}
    np.savez(path, **arrays, classes=np.array(data.classes))
    return path


def write_table(path: Path, indices: list[int]) -> Path:
    names = official_architectures()
    lines = [",".join(("arch", *COLUMNS)), *(f"{names[i]},1,2,3,4,5,6" for i in indices)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


SHORT = [
    "--channels", "2", "--warmup-epochs", "1", "--pruning-epochs", "1", "--batch-size", "16",
    "--threads", "1",
]  # fmt: skip
CANNOT = {
    "one image": (image_data(1, 8), [], "of --dataset npz --data images.npz (images) has too few training"),
    "three images": (image_data(3, 8), [], "at least 4, half of them to train and half to validate; got 3"),
    "one class": (image_data(32, 8, 1), [], "has one class (class 0)"),
    "one class has images": (image_data(32, 8, 3, 1), [], "all 32 training images are of the class"),
    "batches of one": (image_data(), ["--batch-size", "1"], "--batch-size must be at least 2"),
    "evaluation batches of one": (image_data(), ["--evaluation-batch-size", "1"], "--evaluation-batch-size"),
    "a smaller one": (image_data(12), ["--evaluation-batch-size", "2"], "would have a batch of 1 image"),
    "one is drawn": (image_data(), ["--validation-proportion", "0.05"], "--validation-proportion 0.05"),
    "batch statistics": (
        image_data(), ["--evaluation-batch-size", "1", "--batch-norm", "batch"], "--batch-norm running"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
@pytest.mark.parametrize("plain", [[], ["--no-fused"]], ids=["fused", "plain"])
def test_data_that_no_search_can_use_are_refused_before_there_is_a_folder(
    case: str,
    plain: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, arguments, complaint = CANNOT[case]
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "images.npz", data)
    for seeds in (["0"], ["0", "1"]):
        command = [*SHORT, "--dataset", "npz", "--data", "images.npz", *arguments, *plain, "--out", "run"]
        assert complaint in error_of([*command, "--seeds", *seeds], capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]


def search(data: ImageData, folder: Path, table: BenchmarkTable | None = None, **settings: Any) -> Search:
    config = PRESETS["quick"].replaced(
        finalists=0,
        dataset="npz",
        channels=2,
        warmup_epochs=1,
        pruning_epochs=1,
        batch_size=16,
        **settings,
    )
    return Search(config, data, RunFolder(folder), Silent(), table)


class Silent:
    def phase(self, description: str, total: int, done: int = 0) -> None: ...

    def advance(self, done: int, epochs: float) -> None: ...

    def epoch(self, metrics: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("case", ["one image", "one class", "one is drawn"])
def test_the_api_refuses_them_too(case: str, tmp_path: Path) -> None:
    data = CANNOT[case][0]
    with pytest.raises(UserError, match=r"needs at least|would have a batch of 1"):
        search(data, tmp_path, validation_proportion=0.05)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_a_last_batch_of_one_tiny_image_is_left_out(size: int, fused: bool, tmp_path: Path) -> None:
    """17 images in batches of 16: in each of the halves one is over."""
    searched = search(image_data(34, size), tmp_path, fused=fused)
    assert len(searched.training) == len(searched.validation) == 17
    assert [draw.shape[1] for draw in searched.members[0]._draws(searched.training, "training")] == [16]
    result = searched.search()
    assert 0 <= result["index"] < NUM_ARCHITECTURES
    lines = RunFolder(tmp_path).metrics()
    assert len(lines) == 2 and all(np.isfinite(line["weights_loss"]) for line in lines)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(34, 5, [16, 1]), (34, 8, [16, 1]), (36, 4, [16, 2]), (32, 4, [16]), (34, (4, 5), [16, 1])],
)
def test_every_other_last_batch_is_trained_on(
    count: int, size: int | tuple[int, int], sizes: list[int], tmp_path: Path
) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    data = image_data(count, 8)
    images = data.train_images[:, :height, :width].contiguous()
    data = dataclasses.replace(data, train_images=images, test_images=images[:1])
    searched = search(data, tmp_path)
    draws = searched.members[0]._draws(searched.training, "training")
    assert [draw.shape[1] for draw in draws] == sizes
    assert torch.cat([draw[0] for draw in draws]).unique().numel() == count // 2


def test_the_rule_is_where_batch_norm_itself_draws_the_line() -> None:
    supernet = Supernet(channels=2, cells_per_stage=1).train()
    for height, width in ((1, 1), (4, 4), (3, 4), (4, 5), (5, 1), (8, 8)):
        for count in (1, 2):
            enough = count * pixels_of_last_stage((height, width)) >= 2
            images = torch.randn(count, 3, height, width)
            try:
                supernet(images, supernet.new_alpha())
            except ValueError as error:
                assert not enough and "more than 1 value per channel" in str(error)
            else:
                assert enough
            assert preflight.last_batch_is_too_small(
                16 + count, 16, NasBench201().smallest((height, width))
            ) == (not enough)


# Benchmark tables.


@pytest.mark.parametrize(("held", "shown"), [([], "0"), (list(range(NUM_ARCHITECTURES - 3)), "15,622")])
def test_a_table_that_lacks_architectures_is_refused_at_the_start(
    held: list[int],
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", held)
    complaint = f"--benchmark-table table.csv holds {shown} of 15,625 architectures"
    said = error_of([*TINY, "--benchmark-table", "table.csv", "--out", "run"], capsys)
    assert complaint in said and "leave the table out" in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=f"holds {shown} of 15,625"):
        search(image_data(34, 8), tmp_path / "run", BenchmarkTable.load(tmp_path / "table.csv"))


# Memory.


def test_more_memory_than_there_is_is_said_and_not_allocated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    said = error_of(["--channels", "50000", "--out", str(folder)], capsys)
    assert "need at least 42" in said and "TiB of memory" in said and "--channels (50,000)" in said
    said = error_of(["--channels", "1000", "--cells-per-stage", "1000", "--out", str(folder)], capsys)
    assert "--cells-per-stage (1,000)" in said
    assert not folder.exists()


def test_the_least_memory_counts_weights_and_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PRESETS["quick"].replaced(channels=4, cells_per_stage=3, batch_size=8)
    supernet = Supernet(4, 3, 2)
    count = sum(parameter.numel() for parameter in supernet.parameters())
    assert config.space.parameters(2) == count
    needed = 3 * 4 * count + 8 * preflight.activation_bytes(config, (8, 8))
    cpu = torch.device("cpu")
    for there in (needed, needed - 1):
        monkeypatch.setattr(preflight, "memory_of", lambda device, there=there: there)
        try:
            preflight.check_memory(config, image_data(32, 8), cpu)
        except UserError as error:
            assert there < needed and "need at least" in str(error)
        else:
            assert there == needed


def test_a_batch_of_leave_one_out_counts_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PRESETS["quick"].replaced(
        channels=4, batch_size=1, validation_proportion=1.0, evaluation_batch_size=1000
    )
    data = image_data(4000, 8)
    assert preflight.evaluation_bytes(config, data) == 2 * 1000 * 4 * 8 * 8 * 4
    monkeypatch.setattr(preflight, "memory_of", lambda device: 2_000_000)
    for settings, fits in (
        ({}, False),
        ({"criterion": "alpha"}, True),
        ({"evaluation_batch_size": 10}, True),
    ):
        changed = config.replaced(**settings)
        try:
            preflight.check_memory(changed, data, torch.device("cpu"))
        except UserError as error:
            assert not fits and "--evaluation-batch-size (1,000)" in str(error)
        else:
            assert fits


@pytest.mark.parametrize("fused", [True, False])
def test_no_training_step_keeps_less_than_the_estimate(fused: bool) -> None:
    """Else a search that fits would be refused."""
    config = PRESETS["quick"].replaced(channels=8, cells_per_stage=2, fused=fused)
    supernet = Supernet(8, 2, 10, fused=fused).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        supernet(torch.randn(8, 3, 16, 16), supernet.new_alpha().requires_grad_())
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    assert sum(kept.values()) - weights >= 8 * preflight.activation_bytes(config, (16, 16))


@pytest.mark.parametrize(
    ("content", "limit"), [("max\n", None), (f"{1 << 20}\n", 1 << 20), (f"{2**63 - 1}\n", None)]
)
def test_a_containers_limit_counts(
    content: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP_LIMITS", ())
    whole = machine.memory()
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (tmp_path / "nowhere", tmp_path / "memory.max"))
    assert machine.memory() == preflight.memory_of(torch.device("cpu")) == (limit or whole)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 19, 1 << 19))
    assert machine.memory() == 1 << 19


# Batches of leave-one-out.


def loo(batch: Any = None, **options: Any) -> Any:
    supernet = Supernet(channels=2, cells_per_stage=1)
    batch = batch if batch is not None else (torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    return vpdarts_fast.leave_one_out(supernet, [batch], supernet.new_alpha(), **options)


IMAGES, LABELS = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ((IMAGES, LABELS, LABELS), "3 items"),
        ((IMAGES,), "1 items"),
        ((), "0 items"),
        (IMAGES, "Tensor"),
        ({"images": IMAGES, "labels": LABELS}, "dict"),
        (5, "int"),
        ((IMAGES.numpy(), LABELS), "ndarray and Tensor"),
        ([IMAGES, LABELS.tolist()], "Tensor and list"),
    ],
)
@pytest.mark.parametrize("public", [False, True], ids=["supernet", "other model"])
def test_batches_that_are_no_pairs(batch: Any, got: str, public: bool) -> None:
    with pytest.raises(UserError, match=f"must be pairs of tensors, images and labels; got {got}"):
        if public:
            checked_batch(batch)
        else:
            loo(batch)


def test_a_list_of_two_is_a_pair() -> None:
    assert loo([IMAGES, LABELS]).images == 2
