"""The formats of all files that are read back: their versions, and how an older one is brought up to date.

What a format may change, and how, is in docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS, Genotype

Content = dict[str, Any]
Upgrade = Callable[[Content], Content]

FORMAT = "format"
DIGEST = "digest"

CHANGED = "its digest does not fit, so it was changed after it was written"

LARGEST_FILE = 1 << 28
"""Bytes of JSON. A thousand epochs have a hundredth of it."""


@dataclass(frozen=True)
class Format:
    """A kind of file, or of a part of one.

    Attributes:
        kind: what it is, in the mark that every file carries.
        remedy: what to do about a damaged one, for people.
        upgrades: `upgrades[n - 1]` makes the content of version n + 1 out of that of version n.
        first_has_mark: False where version 1 was written without a mark.
    """

    kind: str
    remedy: str
    upgrades: tuple[Upgrade, ...] = ()
    first_has_mark: bool = False

    @property
    def version(self) -> int:
        """The version that is written."""
        return 1 + len(self.upgrades)

    @property
    def mark(self) -> str:
        """Kind and version, the entry `FORMAT` of what is written."""
        return f"vpdarts_fast {self.kind}, version {self.version}"

    def marked(self, content: Content) -> Content:
        """The content with its mark."""
        return {FORMAT: self.mark, **{name: value for name, value in content.items() if name != FORMAT}}

    def version_of(self, content: Content, source: str) -> int:
        """The version that content was written in; `UserError` naming `source` if it is not known here."""
        mark = content.get(FORMAT)
        if mark is None and not self.first_has_mark:
            return 1
        pattern = rf"vpdarts_fast {re.escape(self.kind)}, version ([1-9][0-9]{{0,5}})"
        match = re.fullmatch(pattern, mark) if isinstance(mark, str) else None
        if match is None:
            raise UserError(
                f"{source} holds no {self.kind}: expected {FORMAT} {self.mark!r}; got {shown(mark)}"
            )
        version = int(match[1])
        if version > self.version:
            raise UserError(
                f"{source} was written by a newer vpdarts_fast: {self.kind}, version {version}; this one "
                f"reads versions up to {self.version}. Update vpdarts_fast to go on with it"
            )
        return version

    def upgraded(self, content: Any, source: str) -> Content:
        """The content as the present version has it, without mark and digest; `content` stays as it is.

        Raises:
            UserError: it is of another kind or a newer version, or an older one lacks what it has to have.
        """
        if not isinstance(content, dict):
            raise UserError(f"{source} holds no {self.kind}; got {shown(content)}")
        version = self.version_of(content, source)
        values = {name: value for name, value in content.items() if name not in (FORMAT, DIGEST)}
        with self.reading(source):
            for upgrade in self.upgrades[version - 1 :]:
                values = upgrade(values)
        return values

    @contextmanager
    def reading(self, source: str) -> Iterator[None]:
        """Turns what content of the wrong form raises inside into a `UserError` naming `source`."""
        try:
            yield
        except KeyError as error:
            raise self.damaged(source, f"the entry {shown(error.args[0])} is missing") from error
        except (AttributeError, TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
            raise self.damaged(source, error) from error

    def damaged(self, source: str, reason: object) -> UserError:
        """The error for what cannot be read."""
        return UserError(f"{source} is damaged: {reason}; {self.remedy}")

    # JSON, where a digest stands in the content. Archives of tensors: see `vpdarts_fast.runs.checkpoint`.

    def to_json(self, content: Content, indent: int | None = None) -> str:
        """A JSON object with mark and digest, without a line break at its end."""
        marked = self.marked(content)
        return json.dumps({**marked, DIGEST: _digest(marked)}, indent=indent, allow_nan=False)

    def from_json(self, text: bytes | str, source: str) -> Content:
        """What `to_json` was given, by this or an older version, brought up to date.

        Raises:
            UserError: naming `source`: not JSON, changed since it was written, or not of this format.
        """
        try:
            content = parse_json(text)
            if not isinstance(content, dict):
                raise ValueError(f"expected a JSON object; got {shown(content)}")
            digest = _digest(content)
        except ValueError as error:
            raise self.damaged(source, error) from error
        self.version_of(content, source)
        has_mark = FORMAT in content
        if has_mark != (DIGEST in content) or (has_mark and content[DIGEST] != digest):
            raise self.damaged(source, CHANGED)
        return self.upgraded(content, source)

    def read_json(self, path: Path) -> Content:
        """The file of one JSON object; `UserError` as `from_json`, or if it cannot be read."""
        return self.from_json(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a file of JSON; `UserError` if it cannot be read or is far too large to be one."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is no file of a run: it is larger than {LARGEST_FILE:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json(text: bytes | str) -> Any:
    """JSON without what its numbers and nesting can do to a reader: every number is finite and has 64 bits.

    Raises:
        ValueError: it is not such JSON.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(decoded, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("not valid JSON here: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"a number that is not finite: {digits[:40]}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"a number that is not finite: {name}")


def _digest(content: Content) -> str:
    """Of the content, however it is spaced and ordered."""
    rest = {name: value for name, value in content.items() if name != DIGEST}
    try:
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("not valid JSON here: nested too deeply") from error
    return "blake2b " + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def shown(value: object) -> str:
    """A value from a file, short enough for a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- upgrades: what version n + 1 has that version n did not, and what older runs did ------------


def _same(content: Content) -> Content:
    """Mark and digest are all that is new."""
    return content


def _settings_2(settings: Content) -> Content:
    """Paths are lists of places. Version 1 held what had been typed, relative to where the command ran."""
    paths = {
        name: None if settings[name] is None else [str(Path(settings[name]).expanduser().absolute())]
        for name in ("data", "benchmark_table")
    }
    return {**settings, **paths}


def _settings_3(settings: Content) -> Content:
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


def _settings_4(settings: Content) -> Content:
    """Committees. Every search had one supernet."""
    return {**settings, "committee": 1}


def _settings_5(settings: Content) -> Content:
    """Racing. Every op was evaluated on all images."""
    return {**settings, "evaluation": "full", "race_confidence": 0.95}


def _settings_6(settings: Content) -> Content:
    """Choices that the paper leaves open. All runs made the same ones."""
    choices = {
        "alpha_noise": 0.0,
        "removal": "zero",
        "nesterov": True,
        "alpha_rate_scaling": False,
        "step_order": "weights-first",
    }
    return {**settings, **choices}


def _settings_7(settings: Content) -> Content:
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


def _settings_8(settings: Content) -> Content:
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


def _without_members(content: Content) -> Content:
    """What there is of a committee's supernets beside the first. There were none."""
    return {**content, "members": []}


def _result_3(result: Content) -> Content:
    """What finalists came to."""
    return {**result, "finalists": None}


def _epoch_2(epoch: Content) -> Content:
    """What the epoch was computed on."""
    return {**epoch, "environment": None}


def _checkpoint_2(checkpoint: Content) -> Content:
    """What the steps so far were computed on, and a digest of the images."""
    return {**checkpoint, "environment": None, "images": None}


def _on_all_images(importance: Content | None) -> Content | None:
    """An evaluation on how many images each op was. It was on all."""
    return None if importance is None else {**importance, "op_images": None}


def _with_op_images(content: Content) -> Content:
    """In an epoch or a result, where a committee's supernets have one evaluation each."""
    members = [
        {**member, "importance": _on_all_images(member["importance"])} for member in content["members"]
    ]
    return {**content, "importance": _on_all_images(content["importance"]), "members": members}


def _checkpoint_4(checkpoint: Content) -> Content:
    """In the record of the epoch that each supernet is in."""
    first, *others = (
        {**state, "record": {**state["record"], "evaluation": _on_all_images(state["record"]["evaluation"])}}
        for state in (checkpoint, *checkpoint["members"])
    )
    return {**first, "members": others}


def _checkpoint_5(checkpoint: Content) -> Content:
    """The cell as text in the record of each supernet's epoch, and what parts keep. They kept nothing."""

    def upgraded(state: Content) -> Content:
        record = dict(state["record"])
        choices = record.pop("choices")
        cell = None if choices is None else str(Genotype.from_choices(choices))
        return {**state, "record": {**record, "genotype": cell}, "parts": {}}

    first, *others = map(upgraded, (checkpoint, *checkpoint["members"]))
    return {**first, "members": others}


def _kendall_3(analysis: Content) -> Content:
    """In every batch-norm mode of every snapshot."""
    snapshots = [
        {
            **entry,
            "evaluations": {mode: _on_all_images(found) for mode, found in entry["evaluations"].items()},
        }
        for entry in analysis["snapshots"]
    ]
    return {**analysis, "snapshots": snapshots}


def _kendall_4(analysis: Content) -> Content:
    """How ops were removed."""
    return {**analysis, "removal": "zero"}


def _drawing(architecture: str | None) -> Content | None:
    """What pictures show of a cell of NAS-Bench-201, the only space there was."""
    if architecture is None:
        return None
    choices = Genotype.from_string(architecture).choices
    edges = [[source, target, OPS[op]] for (source, target), op in zip(EDGES, choices, strict=True)]
    cell = {"name": "cell", "nodes": [str(node) for node in range(NUM_NODES)], "edges": edges}
    return {"cells": [cell], "chosen": [[edge, op] for edge, op in enumerate(choices)]}


def _epoch_5(epoch: Content) -> Content:
    """What pictures show of its cell."""
    return {**epoch, "drawing": _drawing(epoch["genotype"])}


def _result_6(result: Content) -> Content:
    """What pictures show of the cell, and the space by its name."""
    return {**result, "space": "nas-bench-201", "drawing": _drawing(result["architecture"])}


SETTINGS = Format(
    "search settings",
    "restore it from a copy, or start a new run",
    (_settings_2, _settings_3, _settings_4, _settings_5, _settings_6, _settings_7, _settings_8),
)
"""config.json; also an entry of seeds.json and of a checkpoint."""

EPOCH = Format(
    "search epoch",
    "restore the file or remove it",
    (_epoch_2, _without_members, _with_op_images, _epoch_5),
)
"""A line of metrics.jsonl."""

RESULT = Format(
    "search result",
    "remove it, and --resume the run to have it written again",
    (_same, _result_3, _without_members, _with_op_images, _result_6),
)
"""result.json."""

SPACE = Format("search space", "remove it, and --resume the run to have it written again", (), True)
"""space.json; runs on NAS-Bench-201 of older versions have none."""

SEEDS = Format("search of several seeds", "restore it from a copy, or --resume the seeds' folders", (_same,))
"""seeds.json."""

CHECKPOINT = Format(
    "search checkpoint",
    "restore it from a copy, or start a new run",
    (_checkpoint_2, _without_members, _checkpoint_4, _checkpoint_5),
    True,
)
"""checkpoint.pt."""

FINALISTS = Format("progress of finalists", "remove it, and --resume the run to train them anew", (), True)
"""finalists.pt."""

SNAPSHOT = Format("search snapshot", "restore it from a copy, or remove it", (_same, _without_members), True)
"""A file of snapshots."""

KENDALL = Format(
    "analysis of snapshots",
    "leave out --reuse to have it written anew",
    (_same, _kendall_3, _kendall_4),
)
"""kendall.json of a run."""
