"""A run is a folder: settings, one JSON line per epoch, checkpoint, result, pictures and log."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run_files import parse_epoch, parse_result, read_tables
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.files import SNAPSHOTS, SPACE_FILE, is_empty, make_empty, write_atomically
from vpdarts_fast.runs.folder import Folder
from vpdarts_fast.runs.formats import EPOCH, RESULT, SETTINGS, SNAPSHOT, SPACE
from vpdarts_fast.runs.space_file import space_to_json
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.spaces.space import AlphaTable


class RunFolder(Folder):
    """Where a search keeps what it made.

    Files: config.json, space.json, metrics.jsonl, checkpoint.pt, result.json, log.txt and pictures, with
    --finalists finalists.pt, and with --snapshots a folder snapshots.

    Args:
        path: the folder.
        tables: of the space that is searched; None reads them from space.json when they are needed.
    """

    kind = "run"
    epoch_format = EPOCH
    result_format = RESULT

    def __init__(self, path: Path, tables: tuple[AlphaTable, ...] | None = None) -> None:
        super().__init__(path)
        self._given_tables = tables
        self.finalists = path / "finalists.pt"
        self.snapshots = path / SNAPSHOTS

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

    def write_snapshot(self, epoch: int, content: dict[str, Any]) -> None:
        """Writes snapshots/epoch-NN.pt; `epoch` is the one that was about to begin, from 0."""
        try:
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.snapshots}: {error.strerror or error}") from error
        path = self.snapshots / f"epoch-{epoch:02d}.pt"
        checkpoint.save(path, content, SNAPSHOT)

    @override
    def check_epoch(self, line: Content) -> None:
        parse_epoch(line, self._tables)

    @override
    def check_result(self, result: Content) -> None:
        parse_result(result, self._tables)

    @cached_property
    def _tables(self) -> tuple[AlphaTable, ...]:
        return read_tables(self.path) if self._given_tables is None else self._given_tables
