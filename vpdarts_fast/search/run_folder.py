"""A run is a folder: settings, one JSON line per epoch, checkpoint, result, pictures and log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.checkpoint import write_atomically
from vpdarts_fast.search.config import SearchConfig, load_config

RESULT_ENTRIES = frozenset({"architecture", "index", "base_accuracy", "benchmark", "seconds"})
"""What the program reads back from result.json."""


class RunFolder:
    """Where a search keeps what it made.

    Files: config.json, metrics.jsonl, checkpoint.pt, result.json, log.txt and pictures, and with
    --snapshots a folder snapshots.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.snapshots = path / "snapshots"
        self.log = path / "log.txt"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> RunFolder:
        """Makes the folder; `UserError` if there is something in it already."""
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(entry.suffix != ".partial" for entry in path.iterdir()):  # left when killed in a write
                raise UserError(
                    f"{path} exists and is not empty: continue that run with --resume {path}, or name "
                    "another folder with --out"
                )
        except OSError as error:
            raise UserError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        write_atomically(path / "config.json", (json.dumps(config.to_json(), indent=2) + "\n").encode())
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, SearchConfig]:
        """A run that exists, and its settings."""
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not the folder of a run: it holds no config.json")
        return cls(path), load_config(path / "config.json")

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to continue from; `UserError` if there should be one."""
        epochs = len(self.metrics())
        # The first epoch's line is written just before the first checkpoint.
        if epochs > 1 and not self.checkpoint.exists():
            raise UserError(
                f"{self.checkpoint} is missing, but {self._metrics.name} has {epochs} epochs: put it back, "
                "or start a new run with another --out"
            )
        return self.checkpoint.exists()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds an epoch, replacing lines of the same or later epochs that an interrupted run left."""
        kept = [earlier for earlier in self.metrics() if earlier["epoch"] < line["epoch"]]
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in (*kept, line))
        write_atomically(self._metrics, text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs written so far."""
        if not self._metrics.exists():
            return []
        try:
            lines = [json.loads(line) for line in self._metrics.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{self._metrics} is damaged: {error}; restore or remove it") from error
        if not all(isinstance(line, dict) and isinstance(line.get("epoch"), int) for line in lines):
            raise UserError(f"{self._metrics} is damaged: a line is not of an epoch; restore or remove it")
        return lines

    def write_result(self, result: dict[str, Any]) -> None:
        write_atomically(self._result, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run."""
        if not self._result.exists():
            return None
        try:
            result = json.loads(self._result.read_text())
            if not isinstance(result, dict) or not set(result) >= RESULT_ENTRIES:
                raise ValueError(f"it must hold {', '.join(sorted(RESULT_ENTRIES))}")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._result} is damaged: {error}; remove it and run --resume {self.path}"
            ) from error
        return result

    def write_snapshot(self, epoch: int, content: dict[str, Any]) -> None:
        """Writes snapshots/epoch-NN.pt; `epoch` is the one that was about to begin, from 0."""
        try:
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.snapshots}: {error.strerror or error}") from error
        path = self.snapshots / f"epoch-{epoch:02d}.pt"
        checkpoint.save(path, content, checkpoint.SNAPSHOT_FORMAT)

    def write_log(self, text: str) -> None:
        """Adds lines to log.txt; raises `OSError` where that is impossible."""
        with self.log.open("a") as file:
            file.write(text + "\n")
