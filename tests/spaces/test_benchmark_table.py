"""Benchmark look-ups: the csv table, what must be refused of it, and the command that shows it."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from vpdarts_fast.benchmark_table import COLUMNS, BenchmarkTable, official_architectures
from vpdarts_fast.benchmark_table.__main__ import main
from vpdarts_fast.benchmark_table.table import PUBLISHED
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES, Genotype, all_genotypes

ALL_SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
PAPER_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
HEADER = ",".join(("arch", *COLUMNS))
ROW = "90.5,70,40.25,80,50,30"


def write(path: Path, *lines: str) -> Path:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A partial table: two architectures, not in official order."""
    return write(
        tmp_path / "small.csv.gz", HEADER, f"{PAPER_CELL},94.36,73.51,46.34,85,60,40", f"{ALL_SKIP},{ROW}"
    )


# The csv table.


def test_official_order_is_a_permutation_with_the_published_anchors() -> None:
    official = official_architectures()
    assert sorted(official) == sorted(str(genotype) for genotype in all_genotypes())
    published = {
        0: "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
        9: "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
        123: "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|",
    }
    assert {index: official[index] for index in published} == published


def test_every_way_to_name_an_architecture_finds_the_same_row(small: Path) -> None:
    table = BenchmarkTable.load(small)
    index = table.official_index(PAPER_CELL)
    expected = dict(zip(COLUMNS, (94.36, 73.51, 46.34, 85, 60, 40), strict=True))
    assert table.architectures[index] == PAPER_CELL
    for name in (PAPER_CELL, Genotype.from_string(PAPER_CELL), index, np.int64(index)):
        assert table.accuracy(name) == expected  # type: ignore[arg-type]


def test_columns_are_indexed_by_official_index_even_when_partial(small: Path) -> None:
    table = BenchmarkTable.load(small)
    column = table.column("cifar100_test_200ep")
    assert column.shape == (NUM_ARCHITECTURES,) and column.dtype == np.float64
    assert column[table.official_index(PAPER_CELL)] == 73.51
    assert column[table.official_index(ALL_SKIP)] == 70
    assert np.array_equal(table.held, ~np.isnan(column)) and table.held.sum() == 2
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1
    with pytest.raises(UserError, match="no column 'cifar10'"):
        table.column("cifar10")


def test_lookups_that_cannot_succeed_say_why(small: Path) -> None:
    table = BenchmarkTable.load(small)
    with pytest.raises(UserError, match=r"official index 0\) is not in the table, which holds 2 of 15,625"):
        table.accuracy(0)
    for index in (-1, NUM_ARCHITECTURES):
        with pytest.raises(UserError, match=rf"must be in 0\.\.15624; got {index}"):
            table.accuracy(index)
    for lookup in (table.accuracy, table.official_index):
        with pytest.raises(UserError, match="not of the form"):
            lookup("|none~0|")


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_save_and_load_round_trip(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 100, (NUM_ARCHITECTURES, len(COLUMNS)))
    values[rng.random(NUM_ARCHITECTURES) < 0.9] = np.nan
    table = BenchmarkTable(COLUMNS, values)
    table.save(tmp_path / name)
    table.save(tmp_path / name)  # replaces
    loaded = BenchmarkTable.load(tmp_path / name)
    for i, column in enumerate(COLUMNS):
        np.testing.assert_array_equal(loaded.column(column), values[:, i])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_save_leaves_the_old_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, before = BenchmarkTable.load(small), small.read_bytes()

    def no_space(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(UserError, match="No space left"):
        table.save(small)
    assert small.read_bytes() == before and list(tmp_path.iterdir()) == [small]


def test_save_refuses_other_names(small: Path, tmp_path: Path) -> None:
    table = BenchmarkTable.load(small)
    with pytest.raises(UserError, match=r"\.csv or \.csv\.gz"):
        table.save(tmp_path / "table.pth")
    with pytest.raises(UserError, match="no directory"):
        table.save(tmp_path / "absent" / "table.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "header must be arch"),
        (["architecture,cifar10_test_200ep"], "header must be arch"),
        (["arch"], "got none"),
        (["arch,cifar10"], "got cifar10"),
        (["arch,cifar10_test_200ep,cifar10_test_200ep"], "each once"),
        ([HEADER, f"{PAPER_CELL},94.36"], "line 2: expected 7 cells; got 2"),
        ([HEADER, f"{PAPER_CELL},{ROW},1"], "line 2: expected 7 cells; got 8"),
        ([HEADER, f"{PAPER_CELL},{ROW}", ""], "line 3: expected 7 cells; got 0"),
        ([HEADER, f"{PAPER_CELL},{ROW}", f"{PAPER_CELL},{ROW}"], "line 3: .*occurs a second time"),
        ([HEADER, f"|max_pool~0|,{ROW}"], "line 2: .*not of the form"),
        ([HEADER, f"{PAPER_CELL.replace('1x1', '5x5').replace('skip_connect', 'x')},{ROW}"], "operation 'x'"),
        ([HEADER, f"{PAPER_CELL},90,,1,1,1,1"], "line 2, column cifar100_test_200ep: .*got ''"),
        ([HEADER, f"{PAPER_CELL},90,1,1,1,1,nan"], "line 2, column imagenet16_120_valid_12ep: .*got 'nan'"),
        ([HEADER, f"{PAPER_CELL},inf,1,1,1,1,1"], "column cifar10_test_200ep: .*got 'inf'"),
        ([HEADER, f"{PAPER_CELL},100.5,1,1,1,1,1"], "got '100.5'"),
        ([HEADER, f"{PAPER_CELL},-1,1,1,1,1,1"], "got '-1'"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    for name in ("table.csv", "table.csv.gz"):
        with pytest.raises(UserError, match=message):
            BenchmarkTable.load(write(tmp_path / name, *lines))


def test_damaged_files_are_refused(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    corrupt = bytearray(data)
    corrupt[len(data) // 2] ^= 0xFF
    for content in (data[: len(data) // 2], data[:-4], bytes(corrupt), data + b"x", b"\x80\x02\xff\x00"):
        small.write_bytes(content)
        with pytest.raises(UserError, match=str(small)):
            BenchmarkTable.load(small)
    with pytest.raises(UserError, match="No such file"):
        BenchmarkTable.load(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot read"):
        BenchmarkTable.load(tmp_path)


def test_the_published_table_holds_the_known_rows() -> None:
    real = BenchmarkTable.published()
    assert real.columns == COLUMNS and real.held.all()
    assert list(real.accuracy(ALL_SKIP).values())[:3] == pytest.approx([54.30, 15.61, 16.32], abs=0.005)
    assert list(real.accuracy(PAPER_CELL).values())[:3] == pytest.approx([94.36, 73.51, 46.34], abs=0.005)
    best = [real.column(name).max() for name in COLUMNS[:3]]
    assert best == pytest.approx([94.37, 73.51, 47.31], abs=0.005)


def test_the_published_table_is_in_official_order_and_survives_a_round_trip(tmp_path: Path) -> None:
    real = BenchmarkTable.published()
    with gzip.open(PUBLISHED, "rt") as file:
        rows = [line.partition(",")[0] for line in file][1:]
    assert tuple(rows) == official_architectures()
    real.save(tmp_path / "copy.csv.gz")
    copy = BenchmarkTable.load(tmp_path / "copy.csv.gz")
    for name in COLUMNS:
        np.testing.assert_array_equal(copy.column(name), real.column(name))


# The command line.


def test_show_prints_accuracy_and_rank(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = BenchmarkTable.load(small).official_index(ALL_SKIP)
    outputs = []
    for name in (ALL_SKIP, str(index)):
        assert main(["show", name, "--table", str(small)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith(f"{ALL_SKIP}  (official index {index})\n")
    assert "cifar10_test_200ep          90.5000 %  rank 2 of 2\n" in outputs[0]


def test_show_needs_no_table_of_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", PAPER_CELL]) == 0
    assert "cifar10_test_200ep          94.3633 %  rank 3 of 15,625\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "15625", "--table", "{table}"],
        ["show", "-1", "--table", "{table}"],
        ["show", "0", "--table", "{table}"],
        ["show", "|none~0|", "--table", "{table}"],
        ["show", "0", "--table", "{directory}/absent.csv"],
        ["convert", "{directory}/absent.pth", "{directory}/new.csv"],
        ["convert", "{table}", "{directory}/new.txt"],
        ["convert", "{table}", "{directory}/absent/new.csv"],
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    arguments: list[str], small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(table=small, directory=tmp_path) for word in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [small]


def test_the_module_runs_as_a_command(small: Path) -> None:
    command = [sys.executable, "-m", "vpdarts_fast.benchmark_table", "show", "0", "--table", str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
