"""The official benchmark files, fabricated with the authors' own classes: converted, or refused."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib
import lzma
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Hostile

from vpdarts_fast import machine
from vpdarts_fast.benchmark_table import (
    COLUMNS,
    BenchmarkTable,
    diagnosis,
    official,
    official_architectures,
)
from vpdarts_fast.benchmark_table.__main__ import main
from vpdarts_fast.benchmark_table.official import COLUMN_SOURCES
from vpdarts_fast.errors import UserError

SPLITS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
ARCHITECTURES = [official_architectures()[index] for index in (4242, 7, 0)]
EVALUATED = [0, 2]
PACKAGES = {
    "pth": ("nas_201_api", "NASBench201API"),
    "legacy_pth": ("nas_201_api", "NASBench201API"),
    "pbz2": ("nats_bench", "NATStopology"),
    "simple": ("nats_bench", "NATStopology"),
}


def make_record(package: Any, index: int, datasets: tuple[str, ...], epochs: int, seeds: int) -> Any:
    """What the files hold of an architecture at one training length, numpy scalars included."""
    rng = random.Random(1000 * index + epochs)
    results = package.ArchResults(index, ARCHITECTURES[index])
    for dataset in datasets:
        for seed in (777, 888, 999)[:seeds]:
            config = {"channel": 16, "num_cells": 5, "arch_str": ARCHITECTURES[index], "class_num": 10}
            curve = OrderedDict((epoch, rng.uniform(10, 90)) for epoch in range(epochs))
            size = np.float64(rng.random())
            result = package.ResultsCount(
                dataset, None, curve, curve, size, 1.5, config, seed, epochs, [size]
            )
            result.update_train_info(curve, curve, curve, curve)
            keys = [f"{split}@{epoch}" for split in SPLITS[dataset] for epoch in range(epochs)]
            evaluation = {key: rng.uniform(10, 90) for key in keys}
            result.update_eval(evaluation, evaluation, evaluation)
            results.update(dataset, seed, result)
    return results.state_dict()


def make_contents(package: Any, names: tuple[str, str], less: tuple[str, ...] = tuple(SPLITS)) -> Any:
    infos = {
        index: OrderedDict(
            {
                names[0]: make_record(package, index, less, 12, 1),
                names[1]: make_record(package, index, tuple(SPLITS), 200, 1 + index),
            }
        )
        for index in EVALUATED
    }
    return {
        "meta_archs": ARCHITECTURES,
        "total_archs": len(ARCHITECTURES),
        "arch2infos": infos,
        "evaluated_indexes": set(EVALUATED),
    }


def write_pbz2(path: Path, contents: Any) -> None:
    with bz2.open(path, "wb") as file:
        pickle.dump(contents, file, protocol=4)


def write_official(kind: str, directory: Path, contents: Any) -> Path:
    """Writes `contents` in one of the official layouts."""
    if kind in ("pth", "legacy_pth"):
        path = directory / "NAS-Bench-201-v1_1-096897.pth"
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "pth")
    elif kind == "pbz2":
        path = directory / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
        write_pbz2(path, contents)
    else:
        path = directory / "NATS-tss-v1_0-3ffb9-simple"
        path.mkdir()
        infos = contents["arch2infos"] if isinstance(contents, dict) else {0: contents}
        meta: dict[str, Any] = {"meta_archs": ARCHITECTURES, "arch2infos": None, "evaluated_indexes": set()}
        write_pbz2(path / "meta.pickle.pbz2", meta)
        for index, info in infos.items():
            write_pbz2(path / f"{index:06d}.pickle.pbz2", info)
    return path


def import_package(kind: str) -> Any:
    name = PACKAGES[kind][0]
    return pytest.importorskip(name, reason=f"the optional package {name} is not installed")


def fabricate(kind: str, directory: Path, **options: Any) -> tuple[Path, Any]:
    package = import_package(kind)
    contents = make_contents(package, ("less", "full") if "pth" in kind else ("12", "200"), **options)
    return write_official(kind, directory, contents), contents


@pytest.mark.parametrize("kind", PACKAGES)
def test_conversion_agrees_with_the_authors_own_queries(kind: str, tmp_path: Path) -> None:
    path, contents = fabricate(kind, tmp_path)
    calls: list[tuple[str, int, int]] = []
    table = BenchmarkTable.from_official(path, lambda *call: calls.append(call))
    package_name, class_name = PACKAGES[kind]
    api = getattr(importlib.import_module(package_name), class_name)(contents, verbose=False)
    assert table.columns == COLUMNS and table.held.sum() == len(EVALUATED)
    for index in EVALUATED:
        row = table.accuracy(ARCHITECTURES[index])
        for column, source in COLUMN_SOURCES.items():
            info = api.get_more_info(index, source.dataset, hp=source.epochs, is_random=False)
            key = "test-accuracy" if "_test_" in column else "valid-accuracy"
            assert row[column] == pytest.approx(info[key], abs=5.1e-5)
    assert [call for call in calls if call[0] == "converting"] == [("converting", 1, 2), ("converting", 2, 2)]
    if kind != "simple":
        assert ("reading", path.stat().st_size, path.stat().st_size) in calls


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_column_is_the_mean_over_seeds_of_the_last_epoch(kind: str, tmp_path: Path) -> None:
    path, contents = fabricate(kind, tmp_path)
    trials = contents["arch2infos"][2]["full" if "pth" in kind else "200"]["all_results"]
    expected = np.mean([trials["cifar100", seed]["eval_acc1es"]["x-test@199"] for seed in (777, 888, 999)])
    row = BenchmarkTable.from_official(path).accuracy(ARCHITECTURES[2])
    assert row["cifar100_test_200ep"] == pytest.approx(expected, abs=5.1e-5)


def test_version_1_0_lacks_columns_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = fabricate("legacy_pth", tmp_path, less=("cifar10-valid",))
    assert main(["convert", str(path), str(tmp_path / "table.csv")]) == 0
    assert BenchmarkTable.load(tmp_path / "table.csv").columns == COLUMNS[:4]
    output = capsys.readouterr()
    assert "2 of 15,625 architectures" in output.out and output.err == ""
    assert "cifar100_valid_12ep, imagenet16_120_valid_12ep" in output.out


def test_inconsistent_official_files_are_refused(tmp_path: Path) -> None:
    package = import_package("pbz2")
    path = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"

    def refused(message: str, contents: Any) -> None:
        write_pbz2(path, contents)
        with pytest.raises(UserError, match=message):
            BenchmarkTable.from_official(path)

    def contents() -> Any:
        return make_contents(package, ("12", "200"))

    refused("no list meta_archs", [1, 2])
    refused("evaluated_indexes is missing", {"meta_archs": ARCHITECTURES, "arch2infos": {}})
    refused("disagree", contents() | {"evaluated_indexes": {0}})
    refused("disagree", contents() | {"meta_archs": ARCHITECTURES[:2]})
    refused("holds no evaluated", contents() | {"arch2infos": {}, "evaluated_indexes": set()})
    refused("results are those of", contents() | {"meta_archs": ARCHITECTURES[::-1]})
    damaged = contents()
    del damaged["arch2infos"][2]["200"]
    refused(r"architecture 2 .*does not hold results", damaged)
    damaged = contents()
    damaged["arch2infos"][2]["12"] = make_record(package, 2, ("cifar10-valid",), 12, 1)
    refused("expected those of the first architecture", damaged)
    damaged = contents()
    damaged["arch2infos"][0]["200"]["all_results"]["cifar10", 777]["eval_acc1es"]["ori-test@199"] = 101.0
    refused(r"architecture 0, column cifar10_test_200ep: expected a percentage", damaged)


@pytest.mark.parametrize("kind", PACKAGES)
def test_truncated_official_files_are_refused(kind: str, tmp_path: Path) -> None:
    path, _ = fabricate(kind, tmp_path)
    damaged = path / "000002.pickle.pbz2" if kind == "simple" else path
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{damaged.name}.*download"):
        BenchmarkTable.from_official(path)


def test_paths_that_are_no_official_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a benchmark")
    with pytest.raises(UserError, match="No such file"):
        BenchmarkTable.from_official(tmp_path / "absent.pth")
    import_package("pth")
    with pytest.raises(UserError, match=r"text\.pth"):
        BenchmarkTable.from_official(tmp_path / "text.pth")
    import_package("simple")
    with pytest.raises(UserError, match=r"no meta\.pickle\.pbz2"):
        BenchmarkTable.from_official(tmp_path)
    write_pbz2(tmp_path / "meta.pickle.pbz2", {"meta_archs": ARCHITECTURES})
    with pytest.raises(UserError, match="holds no architecture"):
        BenchmarkTable.from_official(tmp_path)


# Hostile files. A stand-in package suffices: they must be refused before any package sees them.


@pytest.fixture
def stand_in_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in PACKAGES.values():
        package = types.ModuleType(name)
        monkeypatch.setattr(package, "ArchResults", None, raising=False)
        monkeypatch.setitem(sys.modules, name, package)


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("place", ["top", "record"])
def test_a_hostile_pickle_is_refused_and_not_executed(kind: str, place: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    hostile = Hostile(Path.touch, victim)
    pickle.loads(pickle.dumps(hostile))
    assert victim.exists(), "the payload must work where nothing protects"
    victim.unlink()
    contents = {"meta_archs": ARCHITECTURES, "arch2infos": {0: hostile}, "evaluated_indexes": {0}}
    path = write_official(kind, tmp_path, hostile if place == "top" else contents)
    with pytest.raises(UserError, match="only plain data is accepted"):
        BenchmarkTable.from_official(path)
    assert not victim.exists()


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize(
    "value",
    [
        Hostile(getattr, "text", "upper"),
        Hostile(eval, "1"),
        Hostile(importlib.import_module, "this"),
        Hostile(pickle.loads, pickle.dumps(1)),
        np.array([1.0]),
        np.str_("text"),
        np.void(b"12345678"),
        Path("relative"),
    ],
    ids=["getattr", "eval", "import", "pickle", "array", "str", "void", "path"],
)
def test_only_plain_data_is_read(kind: str, value: Any, tmp_path: Path) -> None:
    contents = {"meta_archs": ARCHITECTURES, "arch2infos": {0: [value]}, "evaluated_indexes": {0}}
    path = write_official(kind, tmp_path, contents)
    with pytest.raises(UserError, match=r"only plain data is accepted|damaged"):
        BenchmarkTable.from_official(path)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("pth", "pbz2", "simple"):
        path = write_official(kind, tmp_path, {"arch2infos": {}})
        monkeypatch.setitem(sys.modules, PACKAGES[kind][0], None)
        with pytest.raises(UserError, match=r"pip install 'vpdarts_fast\[benchmark\]'"):
            BenchmarkTable.from_official(path)


# What people try instead, and what ends: each by its own name, in nobody else's words.


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

    monkeypatch.setattr(official, "_accuracies", no_memory)
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


# The command line.


def test_convert_overwrites_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = fabricate("simple", tmp_path)
    target = tmp_path / "table.csv.gz"
    target.write_text("precious")
    assert main(["convert", str(path), str(target)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {target} exists")
    assert target.read_text() == "precious"
    assert main(["convert", str(path), str(target), "--overwrite"]) == 0
    assert BenchmarkTable.load(target).held.sum() == len(EVALUATED)


def test_convert_shows_progress_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = fabricate("pbz2", tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["convert", str(path), str(tmp_path / "table.csv")]) == 0
    output = capsys.readouterr().err
    assert "reading" in output and "converting" in output
