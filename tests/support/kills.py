"""Kills searches and continues them: `python tests/support/kills.py --kills 100` says whether each came back.

A search is killed by SIGKILL, half of the times at a random moment and else in a write: before a file of
its folder is opened, renamed, removed or synchronised, and with half of its content written. What continues
it may be killed too. The folder has to end up as that of a search that was left alone, bit for bit but for
the times taken. With --every-write, each single write of a search is killed once, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import sklearn.datasets  # noqa: F401  This and the last only so that the forked processes need not import it.
import torch
import torch._dynamo
from search_calls import bits

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.runs.files import LOCK_FILE
from vpdarts_fast.search import __main__ as command_line
from vpdarts_fast.search import running

SEARCH = [
    "--max-images", "32", "--channels", "1", "--warmup-epochs", "1", "--pruning-epochs", "2",
    "--batch-size", "8", "--evaluation-batch-size", "8", "--threads", "1", "--snapshots",
    "--finalists", "2", "--finalist-steps", "2", "--finalist-budget", "8", "--finalist-channels", "1",
    "--finalist-cells-per-stage", "1",
]  # fmt: skip

SEEDS = {"one": ["--seeds", "3", "--committee", "2"], "several": ["--seeds", "3", "4", "--jobs", "1"]}
"""Of several seeds no pictures are drawn: it takes longer than to search."""

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
"""Python's audit events that change a folder; an opened file counts if it is opened for writing."""


@dataclass(frozen=True)
class Kill:
    """When a process is killed: at its n-th event or after so many seconds."""

    event: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative after a signal, its last event and how many it had."""

    status: int
    label: str
    events: int
    seconds: float


class Trap:
    """Counts the events of this process in a folder, and kills it at one of them."""

    def __init__(self, folder: Path, event: int | None, report: int) -> None:
        self.folder, self._event, self._report = folder, event, report
        self._count = 0
        self._fsync = os.fsync

    def set(self) -> None:
        os.fsync = self._sync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], (str, os.PathLike)):
            path = os.fspath(arguments[0])
            writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if isinstance(path, str) and path.startswith(str(self.folder)) and writes:
                self._happened(f"{event.removeprefix('os.')} {kind_of(path)}")

    def _sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = os.fstat(descriptor).st_size
        if not path.is_dir():
            self._happened(f"half of {kind_of(str(path))}", lambda: os.ftruncate(descriptor, size // 2))
        self._happened(f"sync {kind_of(str(path))}")
        self._fsync(descriptor)

    def _happened(self, label: str, last_act: Any = lambda: None) -> None:
        self._count += 1
        os.write(self._report, f"{label}\n".encode())
        if self._count == self._event:
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)


def kind_of(path: str) -> str:
    """The name of a file of a run without what is random in it."""
    return re.sub(r"\.[0-9a-f]{8}\.partial$|-\d+", "", Path(path).name)


def run(arguments: list[str], folder: Path, kill: Kill | None = None) -> Ended:
    """Runs a command line of the search in a process of its own, and kills that as told.

    It is forked, so that nobody waits for PyTorch to be loaded; this process itself computes nothing.
    """
    reader, writer = os.pipe()
    started = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _search(arguments, Trap(folder, kill.event if kill else None, writer))
    os.close(writer)
    moment = started + kill.seconds if kill and kill.seconds is not None else None
    heard = b""
    while True:
        rest = None if moment is None else max(0.0, moment - time.perf_counter())
        if select.select([reader], [], [], rest)[0]:
            if not (chunk := os.read(reader, 1 << 16)):
                break  # the process has ended
            heard += chunk
        else:
            os.kill(process, signal.SIGKILL)
            moment = None
    os.close(reader)
    _, status = os.waitpid(process, 0)
    labels = heard.decode().splitlines()
    label = labels[-1] if labels else "the beginning"
    return Ended(os.waitstatus_to_exitcode(status), label, len(labels), time.perf_counter() - started)


def _search(arguments: list[str], trap: Trap) -> NoReturn:
    """The end of the forked process."""
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if str(trap.folder).endswith("several"):
            running.draw_pictures = lambda folder: []
        trap.set()
        status = command_line.main(arguments)
    finally:
        os._exit(status)


def next_command(folder: Path, seeds: str) -> list[str]:
    """Continues what has begun, and begins what has not."""
    if (folder / "config.json").exists() or (folder / "seeds.json").exists():
        return ["--resume", str(folder), *(["--jobs", "1"] if seeds == "several" else [])]
    return [*SEARCH, *SEEDS[seeds], "--out", str(folder)]


def content(folder: Path) -> dict[str, Any]:
    """All files of a run, comparable bit for bit, but for the times taken and the log."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".json", ".jsonl"):
            found[name] = [without_times(json.loads(text)) for text in texts(path)]
        elif path.suffix == ".pt":
            found[name] = without_times(torch.load(path, weights_only=True))
        elif path.suffix == ".png":
            found[name] = path.read_bytes()
        elif path.name == "log.txt":
            found[name] = "found: " in path.read_text()
        elif not path.is_dir():
            found[name] = "there"  # an SVG has random names in it
    return found


def texts(path: Path) -> Iterable[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


def without_times(value: Any) -> Any:
    """Less all entries called seconds, and the digests of them."""
    return bits(value, leave_out=("seconds", "digest"))


class Trials:
    """Kills and compares; counts what was killed."""

    def __init__(self, root: Path, random_seed: int) -> None:
        BenchmarkTable.published()  # is kept, so that the forked processes need not read it
        self.root = root
        self.random = random.Random(random_seed)
        self.killed: Counter[str] = Counter()
        self.failed: list[str] = []
        self._alone: dict[str, tuple[dict[str, Any], Ended]] = {}

    def alone(self, seeds: str) -> tuple[dict[str, Any], Ended]:
        """What a search comes to that nobody kills."""
        if seeds not in self._alone:
            folder = self.root / "alone" / seeds
            ended = run(next_command(folder, seeds), folder)
            assert ended.status == 0, f"a search that is left alone ends with status {ended.status}"
            self._alone[seeds] = content(folder), ended
        return self._alone[seeds]

    def trial(self, seeds: str, kills: list[Kill]) -> None:
        """A search that is killed so often, then left to come to its end."""
        print(f"{self.killed.total()} kills, {len(self.failed)} failures so far", file=sys.stderr, flush=True)
        folder = self.root / "killed" / seeds
        shutil.rmtree(folder.parent, ignore_errors=True)
        labels = []
        for kill in kills:
            ended = run(next_command(folder, seeds), folder, kill)
            if ended.status == -signal.SIGKILL:
                by_time = kill.event is None
                labels.append(f"at a random moment, after: {ended.label}" if by_time else ended.label)
                self.killed["at a random moment" if by_time else ended.label] += 1
            elif ended.status != 0:
                self.failed.append(f"{seeds}, {kills}: status {ended.status} after kills at {labels}")
                return
        ended = run(next_command(folder, seeds), folder)
        if ended.status != 0:
            self.failed.append(f"{seeds}, {kills}: status {ended.status} after kills at {labels}")
            return
        expected, after = self.alone(seeds)[0], content(folder)
        differ = sorted(
            name for name in expected.keys() | after.keys() if expected.get(name) != after.get(name)
        )
        if differ or (folder / LOCK_FILE).exists():
            self.failed.append(f"{seeds}, {kills}: {', '.join(differ)} differ after kills at {labels}")

    def random_trial(self) -> None:
        seeds = self.random.choice(list(SEEDS))
        ended = self.alone(seeds)[1]
        kills = [self._random_kill(ended)]
        while self.random.random() < 0.8:  # what continues it is killed too
            kills.append(self._random_kill(ended))
        self.trial(seeds, kills)

    def _random_kill(self, alone: Ended) -> Kill:
        if self.random.random() < 0.5:
            return Kill(seconds=self.random.uniform(0, alone.seconds))
        return Kill(event=self.random.randint(1, alone.events))

    def every_write(self, seeds: str) -> None:
        """One trial for each event of a search."""
        for event in range(1, self.alone(seeds)[1].events + 1):
            self.trial(seeds, [Kill(event=event)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="kill until there were so many")
    parser.add_argument("--every-write", action="store_true", help="kill each write of a search once, first")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), arguments.seed)
        if arguments.every_write:
            trials.every_write("several")
        while trials.killed.total() < arguments.kills:
            trials.random_trial()
    for label, count in sorted(trials.killed.items()):
        print(f"{count:6}  {label}")
    print(f"{trials.killed.total()} kills, {len(trials.failed)} searches did not come back as they should")
    for failure in trials.failed:
        print(failure)
    return 1 if trials.failed else 0


if __name__ == "__main__":
    sys.exit(main())
