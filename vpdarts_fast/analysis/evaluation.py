"""The snapshots of a run, evaluated in every batch-norm mode on the same images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vpdarts_fast.data import ImageHalf
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import (
    NONES,
    Batch,
    BatchNorm,
    LeaveOneOut,
    Removal,
    leave_one_out,
)
from vpdarts_fast.evaluation.taylor import taylor
from vpdarts_fast.evaluation.validation import mean_of
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import KENDALL, SNAPSHOT
from vpdarts_fast.runs.values import mapping, tensor_like, tensors_like, whole
from vpdarts_fast.runtime.precision import computing_in
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.config import FREE_ON_RESUME
from vpdarts_fast.search.images import load_images
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.preflight import choose_device, limited
from vpdarts_fast.search.records import check_evaluation, evaluation_from_json, evaluation_to_json
from vpdarts_fast.search.seeds import read_seeds, seed_folder
from vpdarts_fast.search.state import fitting
from vpdarts_fast.search.streams import drawing, seed_for, stream
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, NasBench201, Supernet

MODES: tuple[BatchNorm, ...] = get_args(BatchNorm)
TAYLOR = "taylor"
WAYS: tuple[str, ...] = (*MODES, TAYLOR)
"""In which ways a snapshot is evaluated: leave-one-out in each batch-norm mode, and by its estimate."""

RUN_FILE = "kendall.json"

Evaluated = Callable[[int, int], None]
"""Called with the number of snapshots done and to do."""


@dataclass(frozen=True)
class Snapshot:
    """What leave-one-out evaluation says of a supernet before an epoch.

    Attributes:
        epoch: the epoch that was about to begin, from 0; the number of epochs for the final evaluation.
        sha256: of the snapshot's file.
        strength: [E, O], of the ops by alpha alone (`Relaxation.strength`).
        alive: [E, O] bool.
        evaluations: by `WAYS`.
    """

    epoch: int
    sha256: str
    strength: Tensor
    alive: Tensor
    evaluations: dict[str, LeaveOneOut]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and what the evaluation of its snapshots says.

    Attributes:
        folder: of the run.
        config: its settings.
        images: how many the evaluation looked at.
        removal: how ops were left out.
        snapshots: in the order of their epochs.
    """

    folder: Path
    config: SearchConfig
    images: int
    removal: Removal
    snapshots: list[Snapshot]


def run_folders(paths: tuple[Path, ...]) -> list[Path]:
    """The runs themselves: a folder of several seeds stands for its seeds' runs."""
    folders = []
    for path in paths:
        several = read_seeds(path)
        folders += [path / seed_folder(seed) for seed in several[0]] if several else [path]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice: " + ", ".join(map(str, folders)))
    return folders


def open_runs(folders: list[Path]) -> list[tuple[Path, SearchConfig]]:
    """The runs' settings; `UserError` unless they differ in nothing but the seed and where they ran."""
    opened = [(folder, RunFolder.open(folder)[1]) for folder in folders]
    aside = {"seed", *FREE_ON_RESUME}
    first_folder, first = opened[0]
    for folder, config in opened[1:]:
        others = config.flat()
        differ = [
            f"{name} is {value} and {others.get(name)}"
            for name, value in first.flat().items()
            if name not in aside and others.get(name) != value
        ]
        if differ:
            raise UserError(
                f"{first_folder} and {folder} are not seeds of one search: {'; '.join(differ)}. "
                "Analyse them one by one"
            )
    return opened


def nas_bench_201(config: SearchConfig, folder: Path) -> NasBench201:
    """The space of a run; `UserError` for another one, of whose cells there are no accuracies."""
    if not isinstance(config.space, NasBench201):
        raise UserError(f"{folder} is a search in {config.space.name}; the analysis knows NAS-Bench-201 only")
    if (variation := config.method.variation).varies:
        raise UserError(f"{folder} is a search with --variation {variation.name}; the analysis knows none")
    if (schedule := config.method.schedule).commits:
        raise UserError(
            f"{folder} is a search with --schedule {schedule.name}; the analysis knows pruning only"
        )
    return config.space


def evaluate_run(
    folder: Path,
    config: SearchConfig,
    *,
    data: Path | None,
    images: int,
    every: int,
    reuse: bool,
    removal: Removal = "zero",
    device: str = "auto",
    progress: Evaluated = lambda done, total: None,
) -> EvaluatedRun:
    """Evaluates every snapshot of a run in every mode, on the same images of its validation set.

    Args:
        folder: of the run, which has kept a snapshot before each evaluation (--snapshots).
        config: the run's settings.
        data: where the images are; None takes the run's own --data.
        images: how many to evaluate on, at most.
        every: evaluate every n-th snapshot only, and the last.
        reuse: take from the run's kendall.json what was evaluated on as many images with this removal.
        removal: as `leave_one_out` has it; the run's own setting does not matter.
        device: auto, cpu or cuda, as --device has it.
        progress: called before each snapshot with how many are done, and with how many there are.

    Raises:
        UserError: no snapshots, a damaged one, or one that does not fit the run's settings.
    """
    paths = snapshot_paths(folder)
    paths = sorted({*paths[::every], paths[-1]})
    target = choose_device(device)
    content = limited(load_images(config.images, data), config)
    _, validation = content.halves(config.search.seed, config.images.split)
    batches = list(validation_batches(validation, images, config, target))
    count = sum(len(labels) for _, labels in batches)
    known = known_evaluations(folder / RUN_FILE, count, removal) if reuse else {}
    supernet = nas_bench_201(config, folder).supernet(content.num_classes, fused=True).to(target)
    snapshots = []
    with computing_in("fp32", target):  # whatever the search had, so that all runs compare
        for done, path in enumerate(paths):
            progress(done, len(paths))
            snapshots.append(_evaluate(path, supernet, config, batches, removal, known))
    progress(len(paths), len(paths))
    return EvaluatedRun(
        folder, config, count, removal, sorted(snapshots, key=lambda snapshot: snapshot.epoch)
    )


def snapshot_paths(folder: Path) -> list[Path]:
    """The snapshots of a run, in the order of their epochs; `UserError` if it has none."""
    paths = sorted((folder / "snapshots").glob("epoch-*.pt"))
    if not paths:
        raise UserError(f"{folder} has no snapshots: run the search with --snapshots")
    return paths


def validation_batches(
    validation: ImageHalf, images: int, config: SearchConfig, device: torch.device
) -> Iterator[Batch]:
    """`images` of the validation set, drawn by the run's seed, in batches of nearly equal size."""
    generator = stream(config.search.seed, "analysis images")
    drawn = torch.randperm(len(validation), generator=generator, device="cpu")[:images]
    for indices in drawn.tensor_split(math.ceil(len(drawn) / config.optimisers.evaluation_batch_size)):
        inputs, labels = validation.batch(indices)
        yield inputs.to(device), labels.to(device)


def _evaluate(
    path: Path,
    supernet: Supernet,
    config: SearchConfig,
    batches: list[Batch],
    removal: Removal,
    known: dict[str, dict[str, LeaveOneOut]],
) -> Snapshot:
    content = checkpoint.load(path, SNAPSHOT)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with fitting(str(path)):
        members = [content, *(mapping(member, "a member") for member in content["members"])]
    relaxation, device = config.method.relaxation, supernet.classifier.weight.device
    alphas: list[Tensor] = []
    found: dict[str, list[LeaveOneOut]] = {way: [] for way in WAYS}
    for member in members:
        alpha, alive, epoch = _restore(member, supernet, path, config.epochs)
        here = alive.to(device)
        alphas.append(alpha.detach())
        if sha256 in known:
            continue
        moment = Moment(torch.tensor(epoch, dtype=torch.float64, device=device), config.epochs)
        with drawing(relaxation.draws, seed_for(config.search.seed, "evaluation weights", epoch), device):
            weights = relaxation.weights(alpha, here, moment).detach()
        for mode in MODES:
            found[mode].append(leave_one_out(supernet, batches, weights, batch_norm=mode, removal=removal))
        found[TAYLOR].append(taylor(supernet, batches, weights, nones=NONES))
    evaluations = known.get(sha256) or {way: mean_of(several) for way, several in found.items()}
    strength = relaxation.strength(torch.stack(alphas).mean(0), here).cpu()
    return Snapshot(epoch, sha256, strength, alive.cpu(), evaluations)


def _restore(
    content: Mapping[str, Any], supernet: Supernet, path: Path, epochs: int
) -> tuple[Tensor, Tensor, int]:
    """Loads the weights; returns alpha [E, O], alive [E, O] and the epoch."""
    template = supernet.new_alpha().detach()
    with fitting(str(path)):
        supernet.load_state_dict(tensors_like(content["supernet"], supernet.state_dict(), "supernet"))
        alpha = tensor_like(content["alpha"], template, "alpha")
        alive = tensor_like(content["alive"], template.bool(), "alive")
        epoch = whole(content["epoch"], "epoch", 0, epochs)
    return alpha.to(supernet.classifier.weight.device), alive, epoch


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as plain values, which `known_evaluations` reads back."""
    evaluations = {mode: evaluation_to_json(found, mode) for mode, found in snapshot.evaluations.items()}
    return {"epoch": snapshot.epoch, "sha256": snapshot.sha256, "evaluations": evaluations}


def known_evaluations(
    path: Path, images: int, removal: Removal = "zero"
) -> dict[str, dict[str, LeaveOneOut]]:
    """Evaluations by the digest of their snapshot, from an earlier kendall.json of the run."""
    if not path.exists():
        return {}
    known: dict[str, dict[str, LeaveOneOut]] = {}
    content = KENDALL.read_json(path)
    with KENDALL.reading(str(path)):
        if content["removal"] != removal:
            return {}
        for entry in content["snapshots"]:
            evaluations = dict(entry["evaluations"])
            for values in evaluations.values():
                check_evaluation(values, (len(EDGES), len(OPS)))
            if not evaluations.keys() >= set(WAYS):
                continue  # a version that knew fewer
            found = {way: evaluation_from_json(evaluations[way]) for way in WAYS}
            if all(evaluation.images == images for evaluation in found.values()):
                known[str(entry["sha256"])] = found
    return known
