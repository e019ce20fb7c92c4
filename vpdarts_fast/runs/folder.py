"""What folders of searches and of trainings have in common: metrics, result, log, and what was not begun."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import LOCK_FILE, write_atomically
from vpdarts_fast.runs.formats import Format, read_bytes
from vpdarts_fast.runs.upgrades import Content


class Folder(ABC):
    """Where a search or a training keeps what it made.

    Args:
        path: the folder.

    Attributes:
        kind: what people call one, as `run`.
        epoch_format: of a line of metrics.jsonl.
        result_format: of result.json.
    """

    kind: ClassVar[str]
    epoch_format: ClassVar[Format]
    result_format: ClassVar[Format]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.log = path / "log.txt"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    @abstractmethod
    def check_epoch(self, line: Content) -> None:
        """Raises `ValueError`, `KeyError` or `TypeError` for a line of metrics.jsonl that is none."""

    @abstractmethod
    def check_result(self, result: Content) -> None:
        """Raises `ValueError`, `KeyError` or `TypeError` for a result that is none."""

    def discard(self) -> None:
        """Empties the folder where nothing has begun; for who has created it and holds its lock."""
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
                f"or start a new {self.kind} with another --out"
            )
        return self.checkpoint.exists()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds an epoch, replacing lines of the same or later epochs that were left by an interruption."""
        kept = [earlier for earlier in self.metrics() if earlier["epoch"] < line["epoch"]]
        text = "".join(self.epoch_format.to_json(entry) + "\n" for entry in (*kept, line))
        write_atomically(self._metrics, text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the epochs written so far; `UserError` if the file is damaged."""
        if not self._metrics.exists():
            return []
        lines: list[Content] = []
        for number, text in enumerate(read_bytes(self._metrics).splitlines(), start=1):
            source = f"{self._metrics}, line {number},"
            lines.append(self.epoch_format.from_json(text, source))
            with self.epoch_format.reading(source):
                self.check_epoch(lines[-1])
            if number > 1 and lines[-1]["epoch"] <= lines[-2]["epoch"]:
                complaint = f"epoch {lines[-1]['epoch']} follows epoch {lines[-2]['epoch']}"
                raise self.epoch_format.damaged(source, complaint)
        return lines

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, as a whole or not at all.

        Raises:
            UserError: the disk is full or not writable.
        """
        write_atomically(self._result, (self.result_format.to_json(result, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """Reads result.json; None where there is none yet, `UserError` if it is damaged."""
        if not self._result.exists():
            return None
        result = self.result_format.read_json(self._result)
        with self.result_format.reading(str(self._result)):
            self.check_result(result)
        return result

    def write_log(self, text: str) -> None:
        """Adds lines to log.txt; raises `OSError` where that is impossible."""
        # Paths whose names are no text of the encoding get their own bytes back.
        with self.log.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + "\n")
