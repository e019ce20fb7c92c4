"""Official benchmark files, fabricated with the authors' own classes or with stand-ins for them."""

from __future__ import annotations

import bz2
import pickle
import random
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vpdarts_fast.benchmark_table import official_architectures

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


def put_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty modules in place of the authors' packages, for files that are refused before these see them."""
    for name, _ in PACKAGES.values():
        package = types.ModuleType(name)
        monkeypatch.setattr(package, "ArchResults", None, raising=False)
        monkeypatch.setitem(sys.modules, name, package)
