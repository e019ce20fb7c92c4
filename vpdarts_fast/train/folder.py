"""The folder of a training: settings, one JSON line per epoch, checkpoint, result, pictures, log, exports."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import is_empty, make_empty, write_atomically
from vpdarts_fast.runs.folder import Folder
from vpdarts_fast.runs.formats import TRAINING_EPOCH, TRAINING_RESULT, TRAINING_SETTINGS
from vpdarts_fast.runs.training_files import parse_epoch, parse_result
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.train.config import TrainConfig


class TrainFolder(Folder):
    """Where a training keeps what it made.

    Files: config.json, metrics.jsonl, checkpoint.pt, result.json, log.txt and pictures; of the network
    model.safetensors, model.json, model.onnx, model.pt2 and README.md.
    """

    kind = "training"
    epoch_format = TRAINING_EPOCH
    result_format = TRAINING_RESULT

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> TrainFolder:
        """Makes the folder; `UserError` if there is something in it already."""
        make_empty(path)
        run = cls(path)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[TrainFolder, TrainConfig]:
        """Opens the folder of a training that exists; also returns its settings.

        Raises:
            UserError: there is no training in it, or its settings cannot be read.
        """
        if not (path / "config.json").is_file():
            if path.is_dir() and is_empty(path):
                raise UserError(f"no training has begun in {path}: start one with --out {path}")
            raise UserError(f"{path} is not the folder of a training: it holds no config.json")
        return cls(path), TrainConfig.read(path / "config.json")

    def write_config(self, config: TrainConfig) -> None:
        """Writes config.json, whose paths are also kept relative to the folder."""
        text = TRAINING_SETTINGS.to_json(config.to_json(self.path), indent=2)
        write_atomically(self.path / "config.json", (text + "\n").encode())

    @override
    def check_epoch(self, line: Content) -> None:
        parse_epoch(line)

    @override
    def check_result(self, result: Content) -> None:
        parse_result(result)
