"""A run is a folder: settings, one JSON line per epoch, checkpoint, result, pictures and log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run_files import parse_epoch, parse_result, read_tables
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.files import LOCK_FILE, SNAPSHOTS, SPACE_FILE, is_empty, make_empty, write_atomically
from vpdarts_fast.runs.formats import EPOCH, RESULT, SETTINGS, SNAPSHOT, SPACE, read_bytes
from vpdarts_fast.runs.space_file import space_to_json
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.spaces.space import AlphaTable


class RunFolder:
    """Where a search keeps what it made.

    Files: config.json, space.json, metrics.jsonl, checkpoint.pt, result.json, log.txt and pictures, with
    --finalists finalists.pt, and with --snapshots a folder snapshots.

    Args:
        path: the folder.
        tables: of the space that is searched; None reads them from space.json when they are needed.
    """

    def __init__(self, path: Path, tables: tuple[AlphaTable, ...] | None = None) -> None:
        self.path = path
        self._given_tables = tables
        self.checkpoint = path / "checkpoint.pt"
        self.finalists = path / "finalists.pt"
        self.snapshots = path / SNAPSHOTS
        self.log = path / "log.txt"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> RunFolder:
        """Makes the folder; `UserError` if there is something in it already."""
        make_empty(path)
        run = cls(path, config.space.tables)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, SearchConfig]:
        """Opens the folder of a run that exists; also returns its settings.

        Raises:
            UserError: there is no run in it, or its settings cannot be read.
        """
        if not (path / "config.json").is_file():
            if path.is_dir() and is_empty(path):
                raise UserError(f"no run has begun in {path}: start one with --out {path}")
            raise UserError(f"{path} is not the folder of a run: it holds no config.json")
        config = SearchConfig.read(path / "config.json")
        return cls(path, config.space.tables), config

    def write_config(self, config: SearchConfig) -> None:
        """Writes config.json, whose paths are also kept relative to the run, and space.json."""
        space = SPACE.to_json(space_to_json(config.space))  # which may complain, before there is a file
        text = SETTINGS.to_json(config.to_json(self.path), indent=2)
        write_atomically(self.path / "config.json", (text + "\n").encode())
        write_atomically(self.path / SPACE_FILE, (space + "\n").encode())

    def discard(self) -> None:
        """Empties the folder of a run that did not begin; for who has created it and holds its lock."""
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
                "or start a new run with another --out"
            )
        return self.checkpoint.exists()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds an epoch, replacing lines of the same or later epochs that an interrupted run left."""
        kept = [earlier for earlier in self.metrics() if earlier["epoch"] < line["epoch"]]
        text = "".join(EPOCH.to_json(entry) + "\n" for entry in (*kept, line))
        write_atomically(self._metrics, text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the epochs written so far; `UserError` if the file is damaged."""
        if not self._metrics.exists():
            return []
        lines: list[Content] = []
        tables = self._tables()
        for number, text in enumerate(read_bytes(self._metrics).splitlines(), start=1):
            source = f"{self._metrics}, line {number},"
            lines.append(EPOCH.from_json(text, source))
            with EPOCH.reading(source):
                parse_epoch(lines[-1], tables)
            if number > 1 and lines[-1]["epoch"] <= lines[-2]["epoch"]:
                raise EPOCH.damaged(source, f"epoch {lines[-1]['epoch']} follows epoch {lines[-2]['epoch']}")
        return lines

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, as a whole or not at all.

        Raises:
            UserError: the disk is full or not writable.
        """
        write_atomically(self._result, (RESULT.to_json(result, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """Reads result.json; None of a run that is not finished, `UserError` if it is damaged."""
        if not self._result.exists():
            return None
        result, tables = RESULT.read_json(self._result), self._tables()
        with RESULT.reading(str(self._result)):
            parse_result(result, tables)
        return result

    def write_snapshot(self, epoch: int, content: dict[str, Any]) -> None:
        """Writes snapshots/epoch-NN.pt; `epoch` is the one that was about to begin, from 0."""
        try:
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.snapshots}: {error.strerror or error}") from error
        path = self.snapshots / f"epoch-{epoch:02d}.pt"
        checkpoint.save(path, content, SNAPSHOT)

    def write_log(self, text: str) -> None:
        """Adds lines to log.txt; raises `OSError` where that is impossible."""
        # Paths whose names are no text of the encoding get their own bytes back.
        with self.log.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + "\n")

    def _tables(self) -> tuple[AlphaTable, ...]:
        return read_tables(self.path) if self._given_tables is None else self._given_tables
