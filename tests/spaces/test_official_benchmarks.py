"""The official benchmark files, fabricated with the authors' own classes: converted, or refused."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import Hostile
from official_files import (
    ARCHITECTURES,
    EVALUATED,
    PACKAGES,
    fabricate,
    import_package,
    make_contents,
    make_record,
    put_stand_ins,
    write_official,
    write_pbz2,
)

from vpdarts_fast.benchmark_table import (
    COLUMNS,
    BenchmarkTable,
)
from vpdarts_fast.benchmark_table.__main__ import main
from vpdarts_fast.benchmark_table.official import COLUMN_SOURCES
from vpdarts_fast.errors import UserError


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
        info = api.get_more_info(index, "cifar10-valid", hp="12", is_random=False)
        cost = info["train-all-time"] + info["valid-per-time"]
        assert table.seconds is not None
        assert table.seconds[table.official_index(ARCHITECTURES[index])] == pytest.approx(cost, abs=5.1e-5)
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
    put_stand_ins(monkeypatch)


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
