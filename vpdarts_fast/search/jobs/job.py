"""One of many searches: its folder, its settings, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run_files import METRICS_FILE, RESULT_FILE
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.search.config import SearchConfig, contradictions
from vpdarts_fast.search.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """A search that is to be finished.

    Attributes:
        name: for people.
        folder: of the run.
        config: its settings.
    """

    name: str
    folder: Path
    config: SearchConfig

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return (self.folder / RESULT_FILE).exists()

    @property
    def epochs_done(self) -> int:
        """How many epochs it has behind it."""
        try:
            return (self.folder / METRICS_FILE).read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def prepare(self) -> None:
        """Makes the folder with the settings; leaves a run that has them as it is.

        Raises:
            UserError: it is the folder of a search with other settings, or of something else.
        """
        if not (self.folder / "config.json").exists():
            with claimed(self.folder):
                RunFolder.create(self.folder, self.config)
            return
        _, saved = RunFolder.open(self.folder)
        if changed := contradictions(saved, self.config):
            raise UserError(
                f"{self.folder} holds a run with other settings; choose another --out, or remove it:\n  "
                + "\n  ".join(changed)
            )
