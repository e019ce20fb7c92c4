"""A search as a call: `search_cells`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from vpdarts_fast.data import GIVEN, DatasetImages, SearchImages
from vpdarts_fast.errors import UserError
from vpdarts_fast.plugins import load_plugins
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.search.config import PRESETS, SearchConfig, contradictions, flag
from vpdarts_fast.search.expectation import Expectation, expect
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.observer import Interrupted, OpsEvaluated
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.running import Session, new_folder, prepared, process_settings, run_one

Given = str | SearchImages | Dataset[Any] | DataLoader[Any] | Sequence[Any] | None
"""What a search takes as its images; see `search_cells`."""

Progress = Literal["auto", "none"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the cell, as its space writes it down; `str` of it is text.
        folder: of the run, with metrics, checkpoint, log and pictures.
        result: what result.json holds: importance, alpha, accuracies, finalists, seconds.
        config: the settings.
        num_classes: of the images.
    """

    genotype: Any
    folder: Path
    result: dict[str, Any]
    config: SearchConfig
    num_classes: int

    def network(self, num_classes: int | None = None) -> nn.Module:
        """The network of the found cell, as large as its paper trains it, with new weights.

        Args:
            num_classes: of its classifier; those of the images if not given.

        Returns:
            A module that is called with images [N, 3, H, W] and returns logits [N, num_classes], or what else
            networks of the space return.
        """
        network: nn.Module = self.config.space.network(self.genotype, num_classes or self.num_classes)
        return network


@overload
def search_cells(
    images: Given = None,
    *,
    preset: str | None = ...,
    method: str | None = ...,
    folder: str | os.PathLike[str] | None = ...,
    resume: bool = ...,
    dry_run: Literal[False] = ...,
    loss: Loss | None = ...,
    on_epoch: Callable[[dict[str, Any]], object] = ...,
    on_evaluation: Callable[[OpsEvaluated], object] = ...,
    on_end: Callable[[SearchResult], object] = ...,
    stop: Callable[[], bool] = ...,
    progress: Progress = ...,
    **settings: Any,
) -> SearchResult: ...


@overload
def search_cells(
    images: Given = None,
    *,
    preset: str | None = ...,
    method: str | None = ...,
    folder: str | os.PathLike[str] | None = ...,
    resume: bool = ...,
    dry_run: Literal[True],
    loss: Loss | None = ...,
    on_epoch: Callable[[dict[str, Any]], object] = ...,
    on_evaluation: Callable[[OpsEvaluated], object] = ...,
    on_end: Callable[[SearchResult], object] = ...,
    stop: Callable[[], bool] = ...,
    progress: Progress = ...,
    **settings: Any,
) -> Expectation: ...


def search_cells(
    images: Given = None,
    *,
    preset: str | None = None,
    method: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    loss: Loss | None = None,
    on_epoch: Callable[[dict[str, Any]], object] = lambda metrics: None,
    on_evaluation: Callable[[OpsEvaluated], object] = lambda evaluated: None,
    on_end: Callable[[SearchResult], object] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = "auto",
    **settings: Any,
) -> SearchResult | Expectation:
    """Searches a cell, as `python -m vpdarts_fast.search` does: the same settings give the same bits.

    Args:
        images: what to search on; both halves of the search are drawn from it. The name of one of
            `vpdarts_fast.data.sources.DATASETS`, as "folder" with `data="photos"`, or "hf:NAME" and
            "torchvision:NAME"; an `ImageData`; a map-style `torch.utils.data.Dataset` with
            items (image float32 [3, H, W], label), see `DatasetImages`, which also takes a name and a number
            of classes; a `DataLoader`, whose data set, `collate_fn` and, unless `batch_size` is set, batch
            size are taken, and nothing else: this process reads the images; None: those that the preset or
            the resumed run names.
        preset: where the settings start from, a key of `vpdarts_fast.search.config.PRESETS`; `quick` if not
            given.
        method: the recipe that parts are taken from, as --method has it; `vp-darts` if not given.
        folder: of the run; a new one under ./runs if not given. It must not exist or be empty.
        resume: go on with the run in `folder`, with its own settings; others may be given as far as
            --resume takes them. Images and a loss of one's own have to be given again.
        dry_run: only say what the search would take; makes no folder.
        loss: of logits [N, classes] and labels [N], the loss [] that all training minimises; cross-entropy if
            not given.
        on_epoch: called with each epoch's line of metrics.jsonl, when it is in the checkpoint.
        on_evaluation: called with each evaluation of the ops.
        on_end: called with the result.
        stop: asked before every step; True stops the search in order.
        progress: `auto` shows what the command line does, on a terminal and in a notebook with bars; `none`
            prints nothing. Both write log.txt.
        settings: any others by their names, as in `channels=8, seed=3` (`SearchConfig.replaced`). `threads`
            are those of PyTorch while the search runs.

    Returns:
        The result; with `dry_run` what the search is expected to take.

    Raises:
        UserError: images, settings or folder will not do, or the search diverged.
        Interrupted: `stop` said so; the run can be resumed bit for bit. After Ctrl-C, or what a callback
            raises, it goes on from the last checkpoint, the end of an epoch.
    """
    if progress not in ("auto", "none"):
        raise UserError(f"progress must be 'auto' or 'none'; got {progress!r}")
    load_plugins(())
    given, brought = _given(images)
    if brought and "dataset" in settings:
        raise UserError("give either images or dataset=, not both")
    place = None if folder is None else Path(folder).expanduser()
    if loss is not None:
        settings = {**settings, "loss": GIVEN}
    if resume:
        settings = {**settings, **({"dataset": brought["dataset"]} if brought else {})}
        config = _resumed_config(place, preset, method, settings)
    else:
        config = _new_config(preset, method, {**brought, **settings})
    with process_settings(config.execution.threads):
        config, data, table = prepared(config, given, loss, quiet=progress == "none")
        minimised = F.cross_entropy if loss is None else loss
        if dry_run:
            return expect(config, data, table, minimised)
        root = new_folder(config.preset, config.images.dataset) if place is None else place
        again = f"vpdarts_fast.search_cells(..., folder={str(root)!r}, resume=True)"
        quiet = progress == "none"
        session = Session(data, table, resume, again, stop, minimised, on_epoch, on_evaluation, quiet)
        try:
            with claimed(root):
                values = run_one(config, root, session)
        except Interrupted as error:
            raise Interrupted(f"the search was stopped; continue with {again}") from error
        genotype = config.space.parse(values["architecture"])
        result = SearchResult(genotype, root, values, config, data.num_classes)
        on_end(result)
        return result


def _given(images: Given) -> tuple[SearchImages | None, dict[str, Any]]:
    """The images, None where they are to be loaded by name, and the settings that they bring along."""
    if images is None:
        return None, {}
    if isinstance(images, str):
        return None, {"dataset": images}
    if isinstance(images, SearchImages):
        return images, {"dataset": GIVEN}
    if not isinstance(images, DataLoader):
        return DatasetImages(images), {"dataset": GIVEN}
    size = images.batch_size or getattr(images.batch_sampler, "batch_size", None)
    collate = default_collate if images.batch_sampler is None else images.collate_fn
    brought = {"dataset": GIVEN} if size is None else {"dataset": GIVEN, "batch_size": size}
    return DatasetImages(images.dataset, collate=collate), brought


def _new_config(preset: str | None, method: str | None, settings: dict[str, Any]) -> SearchConfig:
    """The settings of a preset with others in their place; `UserError` for what no search can be set to."""
    name = "quick" if preset is None else preset
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    recipe = {} if method is None else {"recipe": method}
    config = _with_paths(PRESETS[name], {**recipe, **settings})
    SearchConfig.from_json(config.to_json(), "the settings of the call")  # values of other types
    return config


def _resumed_config(
    folder: Path | None, preset: str | None, method: str | None, settings: dict[str, Any]
) -> SearchConfig:
    """The settings of a run with others in their place; `UserError` where these may not change any more."""
    if folder is None:
        raise UserError("resume=True needs the folder of the run, as folder=")
    _, saved = RunFolder.open(folder)
    config = _with_paths(saved, settings)
    changed = contradictions(saved, config)
    for name, asked, own in (("preset", preset, saved.preset), ("method", method, saved.method.recipe)):
        if asked not in (None, own):
            changed.append(f"{flag(name)}: the run has {own}, asked for {asked}")
    if changed:
        raise UserError(f"cannot change a run that has begun ({folder}):\n  " + "\n  ".join(changed))
    return config


def _with_paths(config: SearchConfig, settings: dict[str, Any]) -> SearchConfig:
    """`config.replaced`, of paths that may be text."""
    paths = {
        name: Path(settings[name]) for name in ("data", "cache", "benchmark_table") if settings.get(name)
    }
    return config.replaced(**{**settings, **paths})
