"""What people try in place of an official file, and what ends while one is read: called by its own name."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import (
    ARCHITECTURES,
    PACKAGES,
    fabricate,
    put_stand_ins,
    write_official,
    write_pbz2,
)

from vpdarts_fast.benchmark_table import (
    BenchmarkTable,
    diagnosis,
    official,
)
from vpdarts_fast.benchmark_table.__main__ import main
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import machine


@pytest.fixture
def stand_in_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    put_stand_ins(monkeypatch)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        BenchmarkTable.from_official(path)
    said = str(caught.value)
    assert str(path) in said
    for foreign in ("weights_only", "PyTorch 2", "add_safe_globals", "arbitrary code", "trust"):
        assert foreign not in said
    return said


def command_in(said: str) -> str:
    """The first command that a message names."""
    found = re.search("`([^`]+)`", said)
    assert found
    return found[1]


TAR = "NATS-tss-v1_0-3ffb9-simple.tar"


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_archive_as_downloaded_is_to_be_unpacked(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    path = folder / TAR
    write_pbz2(tmp_path / "meta.pickle.pbz2", {"meta_archs": ARCHITECTURES})
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(tmp_path / "meta.pickle.pbz2", "NATS-tss-v1_0-3ffb9-simple/meta.pickle.pbz2")
    said = refusal(path)
    subprocess.run(command_in(said), shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "NATS-tss-v1_0-3ffb9-simple" / "meta.pickle.pbz2").exists()
    assert "such as NATS-tss-v1_0-3ffb9-simple)" in said
    assert "damaged" not in said and "download it again" not in said
    full = path.rename(tmp_path / TAR.replace("simple", "full"))
    assert "trained weights, which are not needed" in refusal(full)


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("kind", ["pth", "legacy_pth", "pbz2", "simple"])
@pytest.mark.parametrize("renamed", [False, True])
def test_the_size_search_space_is_another_benchmark(kind: str, renamed: bool, tmp_path: Path) -> None:
    contents = {"meta_archs": ["8:8:8:8:8", "8:8:8:8:16"], "arch2infos": {0: {}}, "evaluated_indexes": {0}}
    path = write_official(kind, tmp_path, contents)
    if kind == "simple":
        write_pbz2(path / "meta.pickle.pbz2", contents)
    if not renamed:  # by its name alone, without reading gigabytes
        path = path.rename(tmp_path / path.name.replace("NATS-tss-v1_0-3ffb9", "NATS-sss-v1_0-50262"))
    said = refusal(path)
    assert "size search space (NATS-sss)" in said and "NATS-tss-v1_0-*-simple" in said
    assert "damaged" not in said and "again" not in said


OTHER_FILES = {
    "empty": (b"", "is empty: its download has not finished"),
    "web page": (b"<!DOCTYPE html><html><head>", "is a web page, not a benchmark"),
    "web page, indented": (b"\n  <HTML>", "is a web page, not a benchmark"),
    "table": (b"arch,cifar10_test_200ep\n", "is a table already"),
    "gzip": (gzip.compress(b"x" * 600), "is compressed: run `gzip -dc < "),
    "xz": (lzma.compress(b"x" * 600), "is compressed: run `xz -dc < "),
    "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "or not a benchmark file"),
}


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files_are_called_what_they_are(case: str, tmp_path: Path) -> None:
    content, expected = OTHER_FILES[case]
    path = tmp_path / "NAS-Bench-201-v1_1-096897.pth"
    path.write_bytes(content)
    said = refusal(path)
    assert expected in said
    if "is compressed" in said:
        subprocess.run(command_in(said), shell=True, cwd=tmp_path, check=True)
        assert (tmp_path / "unpacked").read_bytes() == b"x" * 600


@pytest.mark.usefixtures("stand_in_packages")
def test_archives_and_networks_in_pytorchs_clothes(tmp_path: Path) -> None:
    path = tmp_path / "NAS-Bench-201-v1_1-096897.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("NAS-Bench-201-v1_1-096897.pth", "the real one")
    assert "is a zip archive: unpack it first" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"network/{name}", "")
    assert "compiled network (TorchScript)" in refusal(path)
    torch.save({"weight": torch.ones(2)}, path)
    assert "no list meta_archs" in refusal(path)
    torch.save(torch.nn.Linear(1, 1), path)
    assert "holds trained weights" in refusal(path)


@pytest.mark.usefixtures("stand_in_packages")
def test_a_record_with_trained_weights_is_of_the_full_archive(tmp_path: Path) -> None:
    contents = {"arch2infos": {0: {"weight": torch.ones(2)}}}
    path = write_official("simple", tmp_path, contents)
    with pytest.raises(UserError, match=r"holds trained weights.*-full archive.*NATS-tss-v1_0-\*-simple"):
        BenchmarkTable.from_official(path)


@pytest.mark.usefixtures("stand_in_packages")
def test_the_folder_around_the_directory_says_where_it_is(tmp_path: Path) -> None:
    inner = write_official("simple", tmp_path, {"arch2infos": {0: {}}})
    assert f"{inner} has one: name that" in refusal(tmp_path)


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_where_memory_ends_the_file_is_not_called_damaged(
    kind: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_official(kind, tmp_path, {"arch2infos": {0: {}}})
    monkeypatch.setattr(diagnosis, "LARGE", 0)

    def load(file: Any) -> Any:
        raise error

    for layout in ("_NATS_BENCH", "_NAS_BENCH_201"):
        monkeypatch.setattr(official, layout, getattr(official, layout)._replace(load=load))
    with pytest.raises(
        UserError, match=r"memory \(.*\) ended while .* was read. It is not damaged"
    ) as caught:
        BenchmarkTable.from_official(path)
    assert "NATS-tss-v1_0-*-simple" in str(caught.value) and "again" not in str(caught.value)


def test_where_memory_ends_for_a_process(tmp_path: Path) -> None:
    """As `ulimit -v` ends it, on a file whose objects take more than it has bytes."""
    path = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
    path.write_bytes(bz2.compress(b"\x80\x04(" + b"]" * 1_000_000 + b"l."))  # so many empty lists
    code = """
import resource, sys, types
from pathlib import Path
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.errors import UserError
package = types.ModuleType("nats_bench")
package.ArchResults = None
sys.modules["nats_bench"] = package
(used,) = [int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), used + (24 << 20)))
try:
    BenchmarkTable.from_official(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert re.match(
        r"memory \(.* in all\) ended while .* was read, and official files of its size", run.stdout
    )


def test_memory_that_ends_while_results_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = fabricate("pbz2", tmp_path)
    monkeypatch.setattr(diagnosis, "LARGE", 0)

    def no_memory(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(official, "_measured", no_memory)
    assert "ended while" in refusal(path)


def test_a_file_that_will_not_fit_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = fabricate("pbz2", tmp_path)
    for large, memory, announced in ((0, 1 << 30, True), (0, 64 << 30, False), (200 << 20, 1 << 30, False)):
        monkeypatch.setattr(diagnosis, "LARGE", large)
        monkeypatch.setattr(machine, "memory", lambda memory=memory: memory)
        assert main(["convert", str(path), str(tmp_path / "table.csv"), "--overwrite"]) == 0
        assert ("note: " in capsys.readouterr().err) == announced


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_called_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
    path.touch()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    assert refusal(path) == f"cannot read {path}: {os.strerror(number)}"
