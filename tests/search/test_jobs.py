"""Many searches: which runs when, what follows when a process ends, and a Ray cluster that runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from search_calls import SHORT, outcome
from search_commands import TINY

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import LOCK_FILE
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.runtime import machine
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.jobs import queue
from vpdarts_fast.search.jobs.cluster import RayWorkers, search_in_worker
from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.local import LocalWorkers
from vpdarts_fast.search.jobs.queue import LOSSES, Ended, run_all


def prepared(folder: Path, *seeds: int) -> list[Job]:
    jobs = [Job(f"seed {seed}", folder / f"seed-{seed}", SHORT.replaced(seed=seed)) for seed in seeds]
    for job in jobs:
        job.prepare()
    return jobs


# The queue --------------------------------------------------------------------------------------------------


@dataclass
class Pretended:
    """Workers that do what a script says: of each start of a job, what becomes of it."""

    script: dict[str, list[str]]
    at_once: int = 2
    where: str = "nowhere"
    starts: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def __enter__(self) -> Pretended:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start(self, job: Job) -> Any:
        self.starts.append(job.name)
        return PretendedWork(self, job, self.script[job.name].pop(0))


@dataclass
class PretendedWork:
    workers: Pretended
    job: Job
    fate: str

    def ended(self) -> Ended | None:
        if self.fate == "runs":
            return None
        if "epoch" in self.fate:
            with (self.job.folder / "metrics.jsonl").open("a") as metrics:
                metrics.write("{}\n")
        if self.fate == "done":
            (self.job.folder / "result.json").write_text("{}")
        return Ended(self.fate, lost="lost" in self.fate)

    def stop(self) -> None:
        self.workers.stopped.append(self.job.name)

    def wait(self) -> None:
        assert self.job.name in self.workers.stopped


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "POLL", 0.02)


def test_a_lost_process_is_replaced_as_long_as_the_search_comes_further(tmp_path: Path) -> None:
    jobs = prepared(tmp_path, 0, 1, 2)
    workers = Pretended(
        {
            "seed 0": ["lost", "lost, an epoch more", "lost, an epoch more", "lost", "lost"],
            "seed 1": ["done"],
            "seed 2": ["it says why"],
        }
    )
    told: list[str] = []
    failed = run_all(jobs, workers, on_loss=lambda job, reason: told.append(f"{job.name}: {reason}"))
    assert failed == {"seed 0": "lost", "seed 2": "it says why"} and jobs[1].finished
    assert workers.starts.count("seed 0") == 5 and len(told) == 4, f"{LOSSES} in a row are too many"
    assert told[1] == "seed 0: lost, an epoch more"


def test_no_more_run_than_there_is_room_for_and_all_stop_on_an_interrupt(tmp_path: Path) -> None:
    jobs = prepared(tmp_path, 0, 1, 2)
    workers = Pretended({"seed 0": ["done"], "seed 1": ["runs"], "seed 2": ["runs"]})
    most = 0

    def watch(running: list[Job], done: list[Job]) -> None:
        nonlocal most
        most = max(most, len(running))
        if len(workers.starts) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, workers, on_change=watch)
    assert most == 2 and workers.stopped == ["seed 1", "seed 2"]


def test_a_process_that_the_kernel_kills_is_lost_and_one_that_says_why_is_not(tmp_path: Path) -> None:
    good, bad = (
        prepared(tmp_path, 0)[0],
        Job("bad", tmp_path / "bad", SHORT.replaced(dataset="npz", data=tmp_path / "no")),
    )
    bad.prepare()
    works = [LocalWorkers(2, 1).start(job) for job in (good, bad)]
    works[0].process.kill()
    for work in works:
        work.wait()
    killed, failed = (work.ended() for work in works)
    assert killed is not None and killed.lost and "status -9" in killed.reason
    assert failed is not None and not failed.lost and str(tmp_path / "no") in failed.reason


# Seeds ------------------------------------------------------------------------------------------------------


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_seeds_side_by_side_are_those_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, jobs in (("alone", "1"), ("together", "2")):
        asked = ["--out", str(tmp_path / name), "--seeds", "0", "1", "--jobs", jobs]
        assert main([*TINY, *asked]) == 0
    said = capsys.readouterr().out
    assert "2 searches; 2 at a time, 1 threads each" in said and "seed 1 is done" in said
    assert summary(tmp_path / "alone") == summary(tmp_path / "together")
    for seed in ("seed-0", "seed-1"):
        assert outcome(tmp_path / "alone" / seed) == outcome(tmp_path / "together" / seed)
    # One that fails is named; finished ones are kept, and what is missing is run.
    folder = tmp_path / "together"
    checkpoint, whole = folder / "seed-1" / "checkpoint.pt", summary(folder)
    kept = checkpoint.read_bytes()
    checkpoint.write_bytes(b"damaged")
    (folder / "seed-1" / "result.json").unlink()
    assert main(["--resume", str(folder), "--jobs", "2"]) == 2
    said = capsys.readouterr().err
    assert (
        "1 of 2 searches failed: seed 1: " in said
        and f"Try again with: python -m vpdarts_fast.search --resume {folder}" in said
    )
    checkpoint.write_bytes(kept)
    assert main(["--resume", str(folder), "--jobs", "1"]) == 0
    assert summary(folder) == whole


def stopped_by_sigterm(folder: Path, *arguments: str) -> str:
    """What two seeds of 300 epochs say that are stopped when both have an epoch behind them."""
    asked = [*TINY, "--out", str(folder), "--seeds", "0", "1", "--pruning-epochs", "300", *arguments]
    command = [sys.executable, "-m", "vpdarts_fast.search", *asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        logs = [folder / f"seed-{seed}" / "metrics.jsonl" for seed in (0, 1)]
        wait_for(lambda: all(log.exists() for log in logs), process.poll)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    for seed in (0, 1):
        with claimed(folder / f"seed-{seed}"):  # nobody works there any more
            assert "nothing is lost" in (folder / f"seed-{seed}" / "log.txt").read_text()
    return said


def test_seeds_side_by_side_stop_in_order(tmp_path: Path) -> None:
    said = stopped_by_sigterm(tmp_path / "run", "--jobs", "2")
    assert (
        f"nothing is lost; continue with: python -m vpdarts_fast.search --resume {tmp_path / 'run'}" in said
    )


def wait_for(
    is_there: Callable[[], bool], ended: Callable[[], Any] = lambda: None, seconds: float = 90
) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        assert ended() is None and time.monotonic() < end
        time.sleep(0.05)


def test_what_cannot_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = ["--seeds", "0", "1", "--out", str(tmp_path / "run"), *TINY]
    for wrong, said in (
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--jobs", "2000"], "--jobs must be at most 1,024"),
        (["--seeds", "1", "--jobs", "2"], "give several --seeds"),
        (["--ray", "nowhere"], "cannot join the Ray cluster at nowhere: that is no address"),
        (["--ray", "127.0.0.1:1"], "cannot join the Ray cluster at 127.0.0.1:1: [Errno 111]"),
    ):
        assert main([*seeds, *wrong]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(machine, "memory", lambda: 20 << 20)
    assert main([*seeds, "--jobs", "1000"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        "--jobs 1000 searches at a time need more memory than this machine has: at most [1-9]", said
    )
    assert not (tmp_path / "run").exists()


# A cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes of this machine; its address."""
    utils = pytest.importorskip("ray.cluster_utils", reason="the extra `cluster` is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


@pytest.mark.thorough
def test_a_cluster_runs_six_searches_and_replaces_a_worker_that_is_killed(
    cluster: str, tmp_path: Path
) -> None:
    jobs = prepared(tmp_path / "ray", *range(6))
    lost: list[str] = []
    killed: list[int] = []

    def kill_one(running: list[Job], done: list[Job]) -> None:
        """The first one that has an epoch behind it."""
        for job in running:
            if not killed and job.epochs_done:
                holder = json.loads((job.folder / LOCK_FILE).read_text())
                killed.append(holder["process"])
                os.kill(holder["process"], signal.SIGKILL)

    with RayWorkers(cluster, 1) as workers:
        assert "2 nodes, 2 CPUs" in workers.where
        assert run_all(jobs, workers, on_change=kill_one, on_loss=lambda job, _: lost.append(job.name)) == {}
    assert len(killed) == len(lost) == 1
    few = sorted({lost[0], jobs[-1].name})  # the one that was killed, and another
    again = [job for job in prepared(tmp_path / "alone", *range(6)) if job.name in few]
    assert run_all(again, LocalWorkers(2, 1)) == {}
    for job in again:
        assert outcome(job.folder) == outcome(tmp_path / "ray" / job.folder.name)


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `cluster` is not installed")
def test_searches_in_a_cluster_stop_in_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at auto: Could not find any running Ray"), RayWorkers("auto", 1):
        pass
    assert "all searches are stopped" in stopped_by_sigterm(tmp_path / "run", "--ray", "local", "--jobs", "2")


def test_a_worker_says_what_is_wrong(tmp_path: Path) -> None:
    status, said = search_in_worker(str(tmp_path / "gone"), [], "0.0.0")
    assert status == 2 and "install one version on all nodes" in said
    from vpdarts_fast import __version__

    status, said = search_in_worker(str(tmp_path / "gone"), [], __version__)
    assert status == 2 and f"there is no {tmp_path / 'gone'}" in said and "--out has to be where" in said
