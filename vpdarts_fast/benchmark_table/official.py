"""Reads the accuracies out of the official NAS-Bench-201 and NATS-Bench (topology) files.

Three layouts are known:

- ``NAS-Bench-201-v1_*.pth``: one file written by torch, all architectures in one dictionary;
- ``NATS-tss-v1_0-*.pickle.pbz2``: the same as a bz2-compressed pickle;
- ``NATS-tss-v1_0-*-simple/``: a directory with one small pickle per architecture. It is the one to
  prefer: the single files must be held in memory whole, as Python objects, which takes about 20 GB.

The packages of the benchmark's authors, `nas_201_api` and `nats_bench`, open these files with plain
pickle, which runs whatever a file asks for. So the files are opened here, restricted to plain data,
and the packages' `ArchResults` class gets the resulting dictionaries: the choice of epoch and the
average over seeds are the authors' code.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from vpdarts_fast.benchmark_table.diagnosis import (
    EXPECTED,
    check_kind,
    check_names,
    not_official,
    out_of_memory,
    unreadable,
)
from vpdarts_fast.benchmark_table.restricted_pickle import SAFE_GLOBALS, load_bz2_pickle
from vpdarts_fast.errors import UserError

ProgressCallback = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; bytes while reading, architectures while converting."""


class Source(NamedTuple):
    """Where the official files keep a column.

    Attributes:
        epochs: the training length, in epochs.
        dataset: what was trained on.
        split: what was evaluated on.
    """

    epochs: str
    dataset: str
    split: str


COLUMN_SOURCES = {
    "cifar10_test_200ep": Source("200", "cifar10", "ori-test"),
    "cifar100_test_200ep": Source("200", "cifar100", "x-test"),
    "imagenet16_120_test_200ep": Source("200", "ImageNet16-120", "x-test"),
    "cifar10_valid_12ep": Source("12", "cifar10-valid", "x-valid"),
    "cifar100_valid_12ep": Source("12", "cifar100", "x-valid"),
    "imagenet16_120_valid_12ep": Source("12", "ImageNet16-120", "x-valid"),
}
"""The table's columns. In the packages' terms, a test column is
``api.get_more_info(index, dataset, hp="200", is_random=False)["test-accuracy"]`` and a validation
column ``api.get_more_info(index, dataset, hp="12", is_random=False)["valid-accuracy"]``: the accuracy
after the last epoch, averaged over all seeds. ``cifar10`` was trained on CIFAR-10's training and
validation images together, ``cifar10-valid`` on the training images alone."""


class OfficialRow(NamedTuple):
    """One architecture of an official file.

    Attributes:
        where: the file and the number of the architecture in it, for error messages.
        architecture: its string.
        accuracies: column -> per cent; lacks the columns that the file lacks.
        seconds: that the evaluation took which is `cifar10_valid_12ep`; None where the file does not say.
    """

    where: str
    architecture: str
    accuracies: dict[str, float]
    seconds: float | None


def _load_torch(file: BinaryIO) -> Any:
    import torch  # not needed to look accuracies up

    safe: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
    safe = [(function, f"{module}.{name}") for (module, name), function in SAFE_GLOBALS.items()]
    with torch.serialization.safe_globals(safe), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickles: what is wrong with a file is said elsewhere
        return torch.load(file, map_location="cpu", weights_only=True)


class _Layout(NamedTuple):
    """How to open a file, which package knows its records, and its names for the training lengths."""

    load: Callable[[BinaryIO], Any]
    package: str
    epochs: dict[str, str]


_NAS_BENCH_201 = _Layout(_load_torch, "nas_201_api", {"12": "less", "200": "full"})
_NATS_BENCH = _Layout(load_bz2_pickle, "nats_bench", {"12": "12", "200": "200"})


def read_official(path: Path, progress: ProgressCallback | None = None) -> Iterator[OfficialRow]:
    """The evaluated architectures of an official file or ``-simple`` directory, in its own order.

    Raises:
        UserError: no such file, not an official file, a file that asks for more than plain data,
            or the package that knows its records is not installed.
    """
    check_kind(path)
    if path.is_dir():
        layout = _NATS_BENCH
        results_class = _results_class(layout)
        total, records = _read_directory(layout, path)
    else:
        layout = _NATS_BENCH if _is_bz2(path) else _NAS_BENCH_201
        results_class = _results_class(layout)
        total, records = _read_single_file(layout, path, progress)
    for done, (index, architecture, record) in enumerate(records, start=1):
        where = f"{path}: architecture {index}"
        try:
            accuracies, seconds = _measured(results_class, layout, architecture, record)
        except MemoryError as error:
            raise out_of_memory(path) from error
        except Exception as error:  # the package checks nothing, so a bad record fails in any way
            raise UserError(
                f"{where} ({architecture}) does not hold results as {layout.package} stores them "
                f"({type(error).__name__}: {error}); download the benchmark file again"
            ) from error
        yield OfficialRow(where, architecture, accuracies, seconds)
        if progress is not None:
            progress("converting", done, total)


def _results_class(layout: _Layout) -> Any:
    """The package's `ArchResults`."""
    try:
        return importlib.import_module(layout.package).ArchResults
    except ImportError as error:
        raise UserError(
            f"reading this benchmark file needs the package {layout.package}, which is not installed; "
            "run: pip install 'vpdarts_fast[benchmark]'"
        ) from error


def _measured(
    results_class: Any, layout: _Layout, architecture: str, record: Any
) -> tuple[dict[str, float], float | None]:
    """Column name -> accuracy in per cent, for the columns that this architecture has, and its seconds."""
    results = {
        epochs: results_class.create_from_state_dict(record[name]) for epochs, name in layout.epochs.items()
    }
    for result in results.values():
        if result.arch_str != architecture:
            raise ValueError(f"its results are those of {result.arch_str!r}")
    accuracies = {
        column: float(
            results[source.epochs].get_metrics(source.dataset, source.split, is_random=False)["accuracy"]
        )
        for column, source in COLUMN_SOURCES.items()
        if source.dataset in results[source.epochs].get_dataset_names()
    }
    return accuracies, _seconds(results["12"])


def _seconds(result: Any) -> float | None:
    """All epochs of the training, and one validation, as the benchmark's authors count an evaluation."""
    source = COLUMN_SOURCES["cifar10_valid_12ep"]
    if source.dataset not in result.get_dataset_names():
        return None
    training = result.get_metrics(source.dataset, "train", is_random=False)["all_time"]
    validations = result.get_metrics(source.dataset, source.split, is_random=False)["all_time"]
    if training is None or validations is None:
        return None
    return float(training) + float(validations) / int(source.epochs)  # there is one in every epoch


_Records = tuple[int, Iterator[tuple[int, str, Any]]]
"""How many architectures, and of each: official index, string, results per training length."""


def _read_directory(layout: _Layout, path: Path) -> _Records:
    meta_path = path / "meta.pickle.pbz2"
    if not meta_path.is_file():
        inner = next((inner.parent for inner in sorted(path.glob(f"*/{meta_path.name}"))), None)
        hint = f"; {inner} has one: name that" if inner else f"; {EXPECTED}"
        raise UserError(f"{path} is not a NATS-Bench directory: it has no {meta_path.name}{hint}")
    names = _architecture_names(meta_path, _load(layout, meta_path))
    files = [(index, path / f"{index:06d}.pickle.pbz2") for index in range(len(names))]
    files = [(index, file) for index, file in files if file.is_file()]
    if not files:
        raise UserError(f"{path} holds no architecture: expected files 000000.pickle.pbz2 and so on")
    return len(files), ((index, names[index], _load(layout, file)) for index, file in files)


def _read_single_file(layout: _Layout, path: Path, progress: ProgressCallback | None) -> _Records:
    contents = _load(layout, path, progress)
    names = _architecture_names(path, contents)
    infos, evaluated = contents.get("arch2infos"), contents.get("evaluated_indexes")
    if not isinstance(infos, dict) or not isinstance(evaluated, set | list | tuple):
        raise not_official(path, "arch2infos or evaluated_indexes is missing")
    indices = sorted(infos)
    if set(indices) != set(evaluated) or not set(indices) <= set(range(len(names))):
        raise not_official(path, "meta_archs, arch2infos and evaluated_indexes disagree")
    # pop: the results of an architecture are freed as soon as it is converted
    return len(indices), ((index, names[index], infos.pop(index)) for index in indices)


def _architecture_names(path: Path, contents: Any) -> list[str]:
    names = contents.get("meta_archs") if isinstance(contents, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise not_official(path, "it has no list meta_archs of architecture strings")
    check_names(path, names)
    return names


def _is_bz2(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(3) == b"BZh"
    except OSError as error:
        raise unreadable(path, error) from error


def _load(layout: _Layout, path: Path, progress: ProgressCallback | None = None) -> Any:
    """The object in a file, built from plain data only."""
    try:
        with io.BufferedReader(_MeteredFile(path, progress), buffer_size=1 << 20) as buffered:
            return layout.load(cast(BinaryIO, buffered))
    except Exception as error:  # damaged pickles fail in any way
        raise unreadable(path, error) from error


class _MeteredFile(io.FileIO):
    """A file that reports how far it has been read."""

    def __init__(self, path: Path, progress: ProgressCallback | None) -> None:
        super().__init__(path, "rb")
        self._progress = progress
        self._size = path.stat().st_size

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        if self._progress is not None:
            self._progress("reading", self.tell(), self._size)
        return count
