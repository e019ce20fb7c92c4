"""The folder of a training: settings, one JSON line per epoch, checkpoint, result, pictures, log, exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import LOCK_FILE, is_empty, make_empty, write_atomically
from vpdarts_fast.runs.formats import TRAINING_EPOCH, TRAINING_RESULT, TRAINING_SETTINGS, read_bytes
from vpdarts_fast.runs.training_files import parse_epoch, parse_result
from vpdarts_fast.train.config import TrainConfig


class TrainFolder:
    """Where a training keeps what it made.

    Files: config.json, metrics.jsonl, checkpoint.pt, result.json, log.txt and pictures; of the network
    model.safetensors, model.json, model.onnx, model.pt2 and README.md.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.log = path / "log.txt"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

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

    def discard(self) -> None:
        """Empties the folder of a training that did not begin; for who holds its lock."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_FILE:
                entry.unlink(missing_ok=True)

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to continue from; `UserError` if there should be one."""
        epochs = len(self.metrics())
        # The first epoch's line is written just before the first checkpoint.
        if epochs > 1 and not self.checkpoint.exists():
            raise UserError(
                f"{self.checkpoint} is missing, but {self._metrics.name} has {epochs} epochs: put it back, "
                "or start a new training with another --out"
            )
        return self.checkpoint.exists()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds an epoch, replacing lines of the same or later epochs that an interrupted training left."""
        kept = [earlier for earlier in self.metrics() if earlier["epoch"] < line["epoch"]]
        text = "".join(TRAINING_EPOCH.to_json(entry) + "\n" for entry in (*kept, line))
        write_atomically(self._metrics, text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the epochs written so far; `UserError` if the file is damaged."""
        if not self._metrics.exists():
            return []
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(read_bytes(self._metrics).splitlines(), start=1):
            source = f"{self._metrics}, line {number},"
            lines.append(TRAINING_EPOCH.from_json(text, source))
            with TRAINING_EPOCH.reading(source):
                parse_epoch(lines[-1])
        return lines

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, as a whole or not at all."""
        write_atomically(self._result, (TRAINING_RESULT.to_json(result, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """Reads result.json; None of a training that is not finished, `UserError` if it is damaged."""
        if not self._result.exists():
            return None
        result = TRAINING_RESULT.read_json(self._result)
        with TRAINING_RESULT.reading(str(self._result)):
            parse_result(result)
        return result

    def write_log(self, text: str) -> None:
        """Adds lines to log.txt; raises `OSError` where that is impossible."""
        with self.log.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + "\n")
