"""How content of an older version of a format becomes that of the next one.

Each upgrade takes the content of version n and returns that of version n + 1: what is new, as runs of version
n did it. It knows only these two versions and is never changed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS, Genotype

Content = dict[str, Any]


def same(content: Content) -> Content:
    """Mark and digest are all that is new."""
    return content


def settings_2(settings: Content) -> Content:
    """Paths are lists of places. Version 1 held what had been typed, relative to where the command ran."""
    paths = {
        name: None if settings[name] is None else [str(Path(settings[name]).expanduser().absolute())]
        for name in ("data", "benchmark_table")
    }
    return {**settings, **paths}


def settings_3(settings: Content) -> Content:
    """Finalists. There were none."""
    finalists = {
        "finalists": 0,
        "finalist_channels": 8,
        "finalist_cells_per_stage": 5,
        "finalist_steps": 100,
        "finalist_budget": 12_000,
        "finalist_margin": 5.0,
    }
    return {**settings, **finalists}


def settings_4(settings: Content) -> Content:
    """Committees. Every search had one supernet."""
    return {**settings, "committee": 1}


def settings_5(settings: Content) -> Content:
    """Racing. Every op was evaluated on all images."""
    return {**settings, "evaluation": "full", "race_confidence": 0.95}


def settings_6(settings: Content) -> Content:
    """Choices that the paper leaves open. All runs made the same ones."""
    choices = {
        "alpha_noise": 0.0,
        "removal": "zero",
        "nesterov": True,
        "alpha_rate_scaling": False,
        "step_order": "weights-first",
    }
    return {**settings, **choices}


def settings_7(settings: Content) -> Content:
    """Epochs of a part of the images. Every epoch visited all."""
    return {**settings, "images_per_epoch": None}


_GROUPS = {
    "search": (
        "warmup_epochs", "pruning_epochs", "images_per_epoch", "validation_proportion", "evaluation",
        "race_confidence", "batch_norm", "removal", "committee", "finalists", "finalist_steps",
        "finalist_budget", "finalist_margin", "seed",
    ),
    "optimisers": (
        "batch_size", "evaluation_batch_size", "learning_rate", "learning_rate_end", "momentum", "nesterov",
        "weight_decay", "gradient_clip", "alpha_learning_rate", "alpha_rate_scaling", "alpha_betas",
        "alpha_weight_decay",
    ),
    "images": ("dataset", "data", "download", "max_images"),
    "execution": ("fused", "backend", "precision", "device", "cuda_graphs", "threads", "memory_budget_mib"),
    "reporting": ("benchmark_table", "tensorboard", "snapshots"),
}  # fmt: skip
"""Of version 8, which settings of version 7 each group holds."""


def settings_8(settings: Content) -> Content:
    """Settings in groups, and parts with settings of their own. All runs were VP-DARTS on NAS-Bench-201."""
    left = dict(settings)
    groups = {group: {name: left.pop(name) for name in names} for group, names in _GROUPS.items()}
    sizes = ("channels", "cells_per_stage", "skip_dropout", "finalist_channels", "finalist_cells_per_stage")
    space = {"name": "nas-bench-201", **{name: left.pop(name) for name in sizes}}
    pruning, decay = left.pop("pruning"), left.pop("decay")
    method = {
        "recipe": "vp-darts",
        "relaxation": {"name": "raw"},
        "alpha_rule": {"name": "first-order"},
        "regulariser": {"name": "none"},
        "criterion": {"name": left.pop("criterion")},
        "pruning": {"name": pruning, **({"decay": decay} if pruning == "soft" else {})},
        **{name: left.pop(name) for name in ("alpha_start", "alpha_noise", "step_order")},
    }
    return {"preset": left.pop("preset"), "space": space, "method": method, **groups, **left}


def settings_9(settings: Content) -> Content:
    """The supernet can be varied, and there are schedules. It was that of its space, and there was one."""
    search = dict(settings["search"])
    schedule = {"name": "pruning", **{name: search.pop(name) for name in ("warmup_epochs", "pruning_epochs")}}
    method = {**settings["method"], "variation": {"name": "none"}, "schedule": schedule}
    return {**settings, "search": search, "method": method}


def settings_10(settings: Content) -> Content:
    """What training minimises. A loss that a call had given was not written down."""
    return {**settings, "optimisers": {**settings["optimisers"], "loss": "cross-entropy"}}


def settings_11(settings: Content) -> Content:
    """Steps of the weights for one of alpha, lineages, stopping, the eigenvalue, how halves are divided.

    One, none, none, not measured, at random.
    """
    method = {**settings["method"], "stopping": {"name": "none"}, "alpha_every": 1, "lineage": "recipe"}
    search = {**settings["search"], "eigenvalue": False}
    images = {**settings["images"], "split": "random"}
    return {**settings, "method": method, "search": search, "images": images}


def settings_12(settings: Content) -> Content:
    """Files of images, augmentation, losses and metrics by name, a stem that halves images.

    Every data set had one size of images and its own augmentation; all trained with cross-entropy or what a
    call had given, were judged by accuracy, and had the plain stem.
    """
    files = {"image_size": None, "cache": None, "skip_corrupt": False}
    images = {**settings["images"], **files, "augment": "standard", "cutout": 0}
    losses = {"label_smoothing": 0.1, "class_weight_power": 1.0, "focal_gamma": 2.0}
    optimisers = {**settings["optimisers"], **losses}
    search = {**settings["search"], "metric": "accuracy"}
    space = dict(settings["space"])
    if space["name"] == "nas-bench-201" or space["name"].startswith("darts"):
        space["stem"] = "plain"
    return {**settings, "images": images, "optimisers": optimisers, "search": search, "space": space}


def settings_13(settings: Content) -> Content:
    """What the found cell may cost. There was no limit."""
    limits = {"max_parameters": None, "max_macs": None, "max_latency_ms": None}
    return {**settings, "limits": limits}


def settings_14(settings: Content) -> Content:
    """Whether several processes share their batch statistics. They did not."""
    return {**settings, "optimisers": {**settings["optimisers"], "sync_batch_norm": False}}


def training_settings_2(settings: Content) -> Content:
    """Whether several processes share their batch statistics. They did not."""
    return {**settings, "training": {**settings["training"], "sync_batch_norm": False}}


def without_members(content: Content) -> Content:
    """What there is of a committee's supernets beside the first. There were none."""
    return {**content, "members": []}


def result_3(result: Content) -> Content:
    """What finalists came to."""
    return {**result, "finalists": None}


def epoch_2(epoch: Content) -> Content:
    """What the epoch was computed on."""
    return {**epoch, "environment": None}


def checkpoint_2(checkpoint: Content) -> Content:
    """What the steps so far were computed on, and a digest of the images."""
    return {**checkpoint, "environment": None, "images": None}


def on_all_images(importance: Content | None) -> Content | None:
    """An evaluation on how many images each op was. It was on all."""
    return None if importance is None else {**importance, "op_images": None}


def with_op_images(content: Content) -> Content:
    """In an epoch or a result, where a committee's supernets have one evaluation each."""
    members = [{**member, "importance": on_all_images(member["importance"])} for member in content["members"]]
    return {**content, "importance": on_all_images(content["importance"]), "members": members}


def checkpoint_4(checkpoint: Content) -> Content:
    """In the record of the epoch that each supernet is in."""
    first, *others = (
        {**state, "record": {**state["record"], "evaluation": on_all_images(state["record"]["evaluation"])}}
        for state in (checkpoint, *checkpoint["members"])
    )
    return {**first, "members": others}


def checkpoint_5(checkpoint: Content) -> Content:
    """The cell as text in the record of each supernet's epoch, and what parts keep. They kept nothing."""

    def upgraded(state: Content) -> Content:
        record = dict(state["record"])
        choices = record.pop("choices")
        cell = None if choices is None else str(Genotype.from_choices(choices))
        return {**state, "record": {**record, "genotype": cell}, "parts": {}}

    first, *others = map(upgraded, (checkpoint, *checkpoint["members"]))
    return {**first, "members": others}


def with_tables(content: Content) -> Content:
    """What is trained beside alpha, of each supernet. There was nothing."""
    return {**content, "tables": {}, "members": [{**member, "tables": {}} for member in content["members"]]}


def epoch_6(epoch: Content) -> Content:
    """What is trained beside alpha, and which edges are decided. There was nothing, and none."""
    return {**with_tables(epoch), "decided": None}


def result_7(result: Content) -> Content:
    """How many epochs each stage had. There were two stages."""
    left = dict(result)
    stages = {"warm-up": left.pop("warmup_epochs"), "pruning": left.pop("pruning_epochs")}
    return {**with_tables(left), "stages": stages}


def checkpoint_7(checkpoint: Content) -> Content:
    """In the record of each supernet's epoch, its ranking's tau. None was written down."""
    first, *others = (
        {**state, "record": {**state["record"], "tau": None}}
        for state in (checkpoint, *checkpoint["members"])
    )
    return {**first, "members": others}


def checkpoint_8(checkpoint: Content) -> Content:
    """Whether each supernet has been widened. None was."""
    members = [{**member, "wide": False} for member in checkpoint["members"]]
    return {**checkpoint, "wide": False, "members": members}


def epoch_7(epoch: Content) -> Content:
    """What is watched of the search, and its ranking's tau. Nothing was written down."""
    return {**epoch, "watched": None, "tau": None}


def result_8(result: Content) -> Content:
    """Whether the search ended early, and its ranking's tau. None did, and none was written down."""
    return {**result, "stopped": None, "tau": None}


def result_9(result: Content) -> Content:
    """What the cell costs, where that is limited. It was not."""
    return {**result, "limits": None}


def with_decisions(state: Content) -> Content:
    """Of a checkpoint or a snapshot, which edges are decided, of each supernet. None was."""

    def upgraded(state: Content) -> Content:
        return {**state, "decided": torch.full((len(state["alive"]),), -1, device="cpu")}

    first, *others = map(upgraded, (state, *state["members"]))
    return with_tables({**first, "members": others})


def finalists_2(finalists: Content) -> Content:
    """What each training came to by another metric than accuracy. There was none."""
    trainings = [{**training, "value": None, "share": None} for training in finalists["trainings"]]
    return {**finalists, "trainings": trainings}


def kendall_3(analysis: Content) -> Content:
    """In every batch-norm mode of every snapshot."""
    snapshots = [
        {
            **entry,
            "evaluations": {mode: on_all_images(found) for mode, found in entry["evaluations"].items()},
        }
        for entry in analysis["snapshots"]
    ]
    return {**analysis, "snapshots": snapshots}


def kendall_4(analysis: Content) -> Content:
    """How ops were removed."""
    return {**analysis, "removal": "zero"}


def drawing(architecture: str | None) -> Content | None:
    """What pictures show of a cell of NAS-Bench-201, the only space there was."""
    if architecture is None:
        return None
    choices = Genotype.from_string(architecture).choices
    edges = [[source, target, OPS[op]] for (source, target), op in zip(EDGES, choices, strict=True)]
    cell = {"name": "cell", "nodes": [str(node) for node in range(NUM_NODES)], "edges": edges}
    return {"cells": [cell], "chosen": [[edge, op] for edge, op in enumerate(choices)]}


def epoch_5(epoch: Content) -> Content:
    """What pictures show of its cell."""
    return {**epoch, "drawing": drawing(epoch["genotype"])}


def result_6(result: Content) -> Content:
    """What pictures show of the cell, and the space by its name."""
    return {**result, "space": "nas-bench-201", "drawing": drawing(result["architecture"])}
