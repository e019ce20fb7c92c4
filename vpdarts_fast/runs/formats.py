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
from vpdarts_fast.runs.upgrades import (
    Content,
    checkpoint_2,
    checkpoint_4,
    checkpoint_5,
    checkpoint_7,
    checkpoint_8,
    epoch_2,
    epoch_5,
    epoch_6,
    epoch_7,
    finalists_2,
    kendall_3,
    kendall_4,
    result_3,
    result_6,
    result_7,
    result_8,
    result_9,
    same,
    settings_2,
    settings_3,
    settings_4,
    settings_5,
    settings_6,
    settings_7,
    settings_8,
    settings_9,
    settings_10,
    settings_11,
    settings_12,
    settings_13,
    settings_14,
    training_settings_2,
    with_decisions,
    with_op_images,
    without_members,
)

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


SETTINGS = Format(
    "search settings",
    "restore it from a copy, or start a new run",
    (
        settings_2,
        settings_3,
        settings_4,
        settings_5,
        settings_6,
        settings_7,
        settings_8,
        settings_9,
        settings_10,
        settings_11,
        settings_12,
        settings_13,
        settings_14,
    ),
)
"""config.json; also an entry of seeds.json and of a checkpoint."""

EPOCH = Format(
    "search epoch",
    "restore the file or remove it",
    (epoch_2, without_members, with_op_images, epoch_5, epoch_6, epoch_7),
)
"""A line of metrics.jsonl."""

RESULT = Format(
    "search result",
    "remove it, and --resume the run to have it written again",
    (same, result_3, without_members, with_op_images, result_6, result_7, result_8, result_9),
)
"""result.json."""

SPACE = Format("search space", "remove it, and --resume the run to have it written again", (), True)
"""space.json; runs on NAS-Bench-201 of older versions have none."""

SEEDS = Format("search of several seeds", "restore it from a copy, or --resume the seeds' folders", (same,))
"""seeds.json."""

CHECKPOINT = Format(
    "search checkpoint",
    "restore it from a copy, or start a new run",
    (checkpoint_2, without_members, checkpoint_4, checkpoint_5, with_decisions, checkpoint_7, checkpoint_8),
    True,
)
"""checkpoint.pt."""

FINALISTS = Format(
    "progress of finalists", "remove it, and --resume the run to train them anew", (finalists_2,), True
)
"""finalists.pt."""

SNAPSHOT = Format(
    "search snapshot", "restore it from a copy, or remove it", (same, without_members, with_decisions), True
)
"""A file of snapshots."""

KENDALL = Format(
    "analysis of snapshots",
    "leave out --reuse to have it written anew",
    (same, kendall_3, kendall_4),
)
"""kendall.json of a run."""

TABULAR_RUNS = Format("runs over a table", "remove it to have them run again", (), True)
"""runs.json of a method over a benchmark table (`vpdarts_fast.paper`)."""

TRAINING_SETTINGS = Format(
    "training settings", "restore it from a copy, or start a new training", (training_settings_2,), True
)
"""config.json of a training; also an entry of its checkpoint."""

TRAINING_EPOCH = Format("training epoch", "restore the file or remove it", (), True)
"""A line of metrics.jsonl of a training."""

TRAINING_RESULT = Format(
    "training result", "remove it, and --resume the training to have it written again", (), True
)
"""result.json of a training."""

TRAINING_CHECKPOINT = Format(
    "training checkpoint", "restore it from a copy, or start a new training", (), True
)
"""checkpoint.pt of a training."""

TRAINED_NETWORK = Format(
    "trained network", "--resume the training that it is of, to have it written again", (), True
)
"""model.json: what the weights in model.safetensors beside it are of."""

IMAGE_CACHE = Format("image cache", "its images are decoded again", (), True)
"""cache.json beside decoded images (`vpdarts_fast.data.mapped.cache`)."""
