"""What the training refuses, and in which words."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_npz
from torch import Tensor
from train_cases import CELL, DARTS_CELL, TINY, TINY_DARTS, error_of, trained, without_what_follows

from vpdarts_fast.data import GIVEN
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.train import networks
from vpdarts_fast.train.config import TrainConfig, found_by

pytestmark = pytest.mark.usefixtures("one_thread")


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on its way out with status 2, its parser's frames aside."""
    try:
        return error_of(arguments, capsys)
    except SystemExit as stopped:  # how the parser of the command line refuses
        assert stopped.code == 2
        captured = capsys.readouterr()
        return " ".join((captured.out + captured.err).replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name what to train, the folder of a search or a cell"),
        (["|skip~0|"], "is neither the folder of a search nor a cell of nas-bench-201, darts"),
        ([CELL.replace("nor_conv_1x1", "nor_conv_5x5")], "is neither the folder of a search nor a cell"),
        (["/"], "is not the folder of a run"),
        (
            [CELL, "--auxiliary-weight", "0.4"],
            "is for networks that have an auxiliary head",
        ),
        ([CELL, "--drop-path", "0.2"], "--drop-path 0.2 is for networks that can drop paths"),
        (
            [DARTS_CELL, "--auxiliary-weight", "0.4"],
            "at least 29x29, and those of digits are 16x16",
        ),
        ([CELL, "--epochs", "0"], "--epochs must be at least 1; got 0"),
        ([CELL, "--ema", "1"], "--ema must be in [0, 1); got 1.0"),
        ([CELL, "--learning-rate", "-1"], "--learning-rate must be at least 0; got -1.0"),
        ([CELL, "--drop-path", "1"], "--drop-path must be in [0, 1); got 1.0"),
        ([CELL, "--depth", "1001"], "--depth must be at most 1,000; got 1001"),
        ([DARTS_CELL, "--depth", "2"], "layers must be at least 3; got 2"),
        ([CELL, "--gradient-clip", "0"], "--gradient-clip must be above 0; got 0.0"),
        ([CELL, "--threads", "0"], "--threads must be at least 1; got 0"),
        ([CELL, "--device", "tpu"], "--device must be auto, cpu or cuda; got 'tpu'"),
        ([CELL, "--precision", "tf32"], "--precision tf32 is for CUDA devices"),
        ([CELL, "--dataset", "npz"], "data set npz needs the path of an .npz file"),
        ([DARTS_CELL, "--benchmark-table", "table.csv"], "--benchmark-table is of NAS-Bench-201"),
        ([CELL, "--benchmark-table", "nowhere.csv"], "cannot read benchmark table nowhere.csv"),
        ([CELL, "--plugin", "nowhere.py"], "nowhere.py"),
        (["--resume", "nowhere"], "nowhere is not the folder of a training"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(arguments, capsys)
    assert not list(tmp_path.iterdir())  # no folder is left behind


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 0, 0, 0, 0], "are all of one class, 'cat': a network learns nothing"),
        ([0, 1, 0], "--images half needs at least 4 training images"),
    ],
)
def test_images_that_teach_nothing_are_refused(
    labels: list[int], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((len(labels), 8, 8, 3), dtype=np.uint8)
    path = write_npz(tmp_path / "images.npz", train_images=images, train_labels=np.array(labels))
    arguments = [*TINY, "--dataset", "npz", "--data", str(path), "--images", "half"]
    assert words in error_of([*arguments, "--out", str(tmp_path / "run")], capsys)


def test_a_search_that_is_not_over_has_nothing_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path, SearchConfig().replaced(dataset="digits"))
    assert "has found nothing yet: finish it with" in error_of([str(tmp_path)], capsys)


def test_images_that_were_given_cannot_be_found_again() -> None:
    with pytest.raises(UserError, match="were given to"):
        found_by(SearchConfig().replaced(dataset=GIVEN), CELL)


def test_what_is_trained_cannot_change_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_what_follows(monkeypatch)
    folder = trained(tmp_path / "run", *TINY)
    resume = ["--resume", str(folder)]
    assert "--epochs: the training has 2, asked for 3" in error_of([*resume, "--epochs", "3"], capsys)
    assert "the training is of" in error_of([DARTS_CELL, *resume], capsys)
    assert "stays in its folder" in error_of([*resume, "--out", "other"], capsys)
    assert f"go on with --resume {folder}" in error_of([str(folder)], capsys)
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"PK")
    assert "is damaged or not a training checkpoint" in error_of(resume, capsys)
    (folder / "config.json").write_text("{}")
    assert "holds no training settings" in error_of(resume, capsys)


def test_a_checkpoint_is_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_what_follows(monkeypatch)
    data = ["--dataset", "npz", "--data", str(write_npz(tmp_path / "images.npz"))]
    arguments = [*TINY_DARTS, *data, "--auxiliary-weight", "0", "--cutout", "0"]
    folder = trained(tmp_path / "run", *arguments)
    (folder / "result.json").unlink()
    write_npz(tmp_path / "images.npz", train_labels=np.array([1, 0, 0, 1, 1]))
    assert "was written with other images" in error_of(["--resume", str(folder)], capsys)


def test_a_cell_of_another_space_is_refused() -> None:
    with pytest.raises(UserError, match="is no DARTS genotype"):
        TrainConfig().replaced(space=Darts())


def test_more_memory_than_there_is_is_said_and_not_allocated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    said = refusal([*TINY, "--channels", "50000", "--batch-size", "1000", "--out", str(folder)], capsys)
    assert "this training needs at least" in said and "TiB of memory" in said
    assert "--batch-size (1,000), --channels (50000) or --depth (1)" in said
    assert not folder.exists()


@pytest.mark.parametrize(("cell", "depth"), [(CELL, 1), (DARTS_CELL, 3)], ids=["NAS-Bench-201", "DARTS"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_the_least_memory_is_less_than_a_step_keeps(
    cell: str, depth: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not much less."""
    settings = {} if cell == CELL else {"space": Darts()}
    config = TrainConfig().replaced(cell=cell, channels=4, depth=depth, fused=fused, **settings)
    network = networks.network_to_train(config, 10, torch.device("cpu"))
    kept: dict[int, int] = {}
    alive = list(network.parameters())

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(8, 3, 32, 32))
    weights, activations = networks.least_memory(config, 10, (32, 32), 8)
    of_parameters = sum(parameter.nbytes for parameter in network.parameters())
    assert weights == 3 * of_parameters  # with gradients and momentum
    assert activations <= sum(kept.values()) - of_parameters <= 5 * activations
    for there in (weights + activations, weights + activations - 1):
        monkeypatch.setattr(networks, "memory_of", lambda device, there=there: there)
        enough = there == weights + activations
        with nullcontext() if enough else pytest.raises(UserError, match="choose a smaller --batch-size"):
            networks.check_memory(config, 10, (32, 32), 8, torch.device("cpu"))
