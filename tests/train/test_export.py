"""What a training exports: the same logits in every format, and files that can do no harm."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import random_images, write_npz
from PIL import Image
from search_commands import rewrite
from train_cases import CELL, TINY, TINY_DARTS, stop_after, trained

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.__main__ import main as report
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import TRAINED_NETWORK, TRAINING_CHECKPOINT
from vpdarts_fast.train import export, load
from vpdarts_fast.train.__main__ import main
from vpdarts_fast.train.exporting import TOLERANCE
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.loading import digest_of
from vpdarts_fast.train.predict import main as predict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with all that follows its result."""
    return trained(tmp_path_factory.mktemp("whole") / "run", *TINY, "--ema", "0.5")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_every_format_has_the_same_logits(whole: Path) -> None:
    import onnx
    import onnxruntime

    network = load(whole)
    images = torch.randn(3, 3, 16, 16)  # others than were tried, and another number of them
    logits = network(images)
    bound = TOLERANCE * max(1.0, float(logits.abs().max()))
    exported = torch.export.load(whole / "model.pt2").module()(images)
    session = onnxruntime.InferenceSession(whole / "model.onnx", providers=["CPUExecutionProvider"])
    (of_onnx,) = session.run(["logits"], {"images": images.numpy()})
    assert (exported - logits).abs().max() <= bound
    assert (torch.from_numpy(of_onnx) - logits).abs().max() <= bound
    extra = {"metadata.json": ""}
    torch.export.load(whole / "model.pt2", extra_files=extra)
    of_model = {entry.key: entry.value for entry in onnx.load(whole / "model.onnx").metadata_props}
    assert json.loads(extra["metadata.json"]) == of_model
    assert json.loads(of_model["classes"]) == list(network.classes) == [str(digit) for digit in range(10)]
    assert json.loads(of_model["mean"]) == pytest.approx(network.mean.tolist())
    assert json.loads(of_model["image_size"]) == [16, 16]


def test_the_card_says_what_the_files_are_of(whole: Path) -> None:
    card, result = (whole / "README.md").read_text(), TrainFolder(whole).result()
    assert result is not None
    said = re.search(r"\| test accuracy \| ([\d.]+) % of 360 images", card)
    assert said and float(said[1]) == pytest.approx(result["test"]["accuracy"], abs=0.006)
    assert CELL.replace("|", "\\|") in card and f"| parameters | {result['parameters']:,} |" in card
    assert "ms in PyTorch" in card and "ms in onnxruntime" in card and "1 thread of the machine" in card


def test_the_three_lines_of_the_card_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (whole / "README.md").read_text(), flags=re.DOTALL)
    assert len(lines.splitlines()) == 3
    monkeypatch.chdir(whole)
    picture = tmp_path / "photo.jpg"
    Image.fromarray(np.full((20, 31), 90, dtype=np.uint8)).save(picture)
    exec(compile(lines.replace("photo.jpg", str(picture)), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in load(whole).classes


@pytest.mark.parametrize(("mode", "ending"), [("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("CMYK", "jpg")])
def test_pictures_of_any_kind_are_named(
    mode: str, ending: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"picture.{ending}"
    Image.new(mode, (33, 70)).save(path)
    assert predict([str(whole), str(path), str(path), "--top", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and re.fullmatch(rf"{re.escape(str(path))}: \d [\d.]+ %, \d [\d.]+ %", first)
    (found,) = load(whole).predict(path)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert first.startswith(f"{path}: {found.label} {100 * found.probability:.1f} %")


def test_a_picture_of_the_data_set_is_seen_as_in_training(whole: Path, tmp_path: Path) -> None:
    from vpdarts_fast.data import load as load_data

    data = load_data("digits")
    half = data.test_half()
    expected, _ = half.batch(torch.tensor([4]))
    path = tmp_path / "digit.png"
    Image.fromarray(half.images[4].numpy()).save(path)
    torch.testing.assert_close(load(whole).prepared([path]), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("no picture"), "picture.png: no file of JPEG"),
        (lambda path: path.write_bytes(b""), "picture.png: the file is empty"),
        (lambda path: path.mkdir(), "picture.png: cannot be read"),
        (lambda path: None, "picture.png: cannot be read: No such file"),
    ],
)
def test_what_is_no_picture_is_named(
    make: Callable[[Path], Any],
    words: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "picture.png")
    assert predict([str(whole), str(tmp_path / "picture.png")]) == 2
    assert words in capsys.readouterr().err


def test_no_picture_and_no_network_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(whole)]) == 2 and "name at least one IMAGE" in capsys.readouterr().err
    assert predict([str(tmp_path), "picture.png"]) == 2
    assert "holds no model.json: expected the folder of a finished training" in capsys.readouterr().err
    assert predict([str(whole), "picture.png", "--top", "0"]) == 2
    assert "--top must be at least 1" in capsys.readouterr().err


class Hostile:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda run: (run / "model.safetensors").unlink(), "cannot read"),
    "a pickle": (lambda run: (run / "model.safetensors").write_bytes(pickle.dumps(Hostile())), "is damaged"),
    "cut off": (lambda run: shorten(run / "model.safetensors", 100), "is damaged"),
    "another byte": (lambda run: flip(run / "model.safetensors"), "not the file that model.json is of"),
    "changed by hand": (lambda run: edit(run), "is damaged: its digest does not fit"),
    "no JSON": (lambda run: (run / "model.json").write_text("{"), "is damaged: not valid JSON"),
    "a newer one": (lambda run: edit(run, "version 1", "version 7"), "written by a newer vpdarts_fast"),
    "another cell": (lambda run: card(run, architecture=CELL.replace("1x1", "3x3")), "takes? "),
    "no cell": (lambda run: card(run, architecture="|none~0|"), "is not of the form"),
    "an unknown space": (lambda run: card(run, space={"name": "mine"}), "--space mine is not known"),
    "huge": (lambda run: card(run, channels=65_536), "is damaged"),
    "too deep": (lambda run: card(run, depth=10**9), "depth must be at most 1,000"),
    "a size of text": (lambda run: card(run, channels="4"), "channels must be a whole number"),
    "few classes": (lambda run: card(run, classes=["one"]), "classes must be 2 to"),
    "a deviation of 0": (lambda run: card(run, std=[1, 0, 1]), "std must be a finite number in"),
    "an image of any size": (lambda run: card(run, image_size=[16, 1 << 40]), "image_size must be"),
    "hostile weights": (lambda run: header(run, b'{"a": {"dtype": "F32", "shape": [1e9]}}'), "is damaged"),
    "a header of any length": (lambda run: header(run, b"", 1 << 60), "is damaged"),
}


def shorten(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(run: Path, old: str = "short", new: str = "SHORT") -> None:
    text = (run / "model.json").read_text()
    assert old in text
    (run / "model.json").write_text(text.replace(old, new))


def card(run: Path, **entries: Any) -> None:
    rewrite(run / "model.json", TRAINED_NETWORK, **entries)


def header(run: Path, text: bytes, length: int | None = None) -> None:
    """Weights that begin with this header, and are what model.json is of."""
    path = run / "model.safetensors"
    size = path.stat().st_size
    data = (len(text) if length is None else length).to_bytes(8, "little") + text
    data += b"\0" * (size - len(data))
    path.write_bytes(data)
    card(run, weights=digest_of(data))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_hostile_files_are_refused(damage: str, run: Path) -> None:
    make, words = DAMAGES[damage]
    make(run)
    with pytest.raises(UserError, match=re.escape(words) if "?" not in words else words):
        load(run)


def test_export_again_gives_the_same_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "model.json", "model.pt2", "model.onnx", "README.md", "curves.png"):
        (run / name).unlink()
    assert main(["--resume", str(run), "--no-onnx"]) == 0
    assert (run / "model.safetensors").read_bytes() == before
    assert (run / "model.pt2").exists() and (run / "curves.png").exists()
    assert not (run / "model.onnx").exists()
    assert "this training is finished" in capsys.readouterr().out


def test_without_onnx_there_is_a_word_and_all_else(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith("onnx") else find_spec(name, *rest),
    )
    for name in ("model.safetensors", "model.onnx"):
        (run / name).unlink()
    said = export(run)
    assert any("pip install 'vpdarts-fast[export]'" in line for line in said)
    assert (run / "model.safetensors").exists() and not (run / "model.onnx").exists()
    assert "model.onnx" not in (run / "README.md").read_text()


def test_logits_that_differ_are_not_exported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpdarts_fast.train.exporting.TOLERANCE", -1.0)
    (run / "model.pt2").unlink()
    with pytest.raises(UserError, match="gives other logits than the network"):
        export(run)
    assert not (run / "model.pt2").exists()


def test_a_training_on_its_way_has_nothing_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(3, monkeypatch)
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 130
    with pytest.raises(UserError, match="is not finished: go on with python -m"):
        export(tmp_path / "run")


def test_a_network_of_darts_is_exported_without_its_auxiliary_head(tmp_path: Path) -> None:
    images = {"train_images": random_images(5, 32).numpy(), "test_images": random_images(2, 32).numpy()}
    path = write_npz(tmp_path / "images.npz", **images)
    arguments = [*TINY_DARTS, "--dataset", "npz", "--data", str(path), "--preset", "darts", "--no-onnx"]
    folder = trained(tmp_path / "run", *arguments)
    network = load(folder)
    saved = checkpoint.load(folder / "checkpoint.pt", TRAINING_CHECKPOINT)["network"]
    assert any(name.startswith("auxiliary_head.") for name in saved)
    assert set(network.network.state_dict()) == {name for name in saved if "auxiliary" not in name}
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_pictures_are_drawn_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("curves.png", "confusion.png"):
        (run / name).unlink()
    assert report([str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / name) for name in ("curves.png", "confusion.png")]
    assert (run / "confusion.png").stat().st_size > 1000
