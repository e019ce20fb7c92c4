"""Checkpoints: written whole or not at all, read without running what is in them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from vpdarts_fast.errors import UserError

FORMAT = "vpdarts_fast search checkpoint, version 1"
SNAPSHOT_FORMAT = "vpdarts_fast search snapshot, version 1"


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with this content; whatever happens, the old or the new one is there, whole.

    Raises:
        UserError: the disk is full or not writable; the old file is intact.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({len(content):,} bytes): {error.strerror or error}. What was there before "
            "is intact: make room or the folder writable, then run the same again (a search that had begun: "
            f"with --resume {path.parent})"
        ) from error
    finally:  # there is one only if this failed or was interrupted
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any], file_format: str = FORMAT) -> None:
    """Writes a checkpoint, or a file of another format, atomically; tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save({"format": file_format, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, file_format: str = FORMAT) -> dict[str, Any]:
    """Reads what `save` wrote; `UserError` if it is missing, damaged or something else."""
    kind = "snapshot" if file_format == SNAPSHOT_FORMAT else "checkpoint"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"no {kind} at {path}; was the run stopped in its first epoch? Start it again"
        ) from error
    except pickle.UnpicklingError as error:  # PyTorch's own words advise to read it by running it
        raise UserError(
            f"{path} is damaged or not a {kind} of a search: it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch.load raises many kinds on a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged or not a {kind} of a search: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != file_format:
        raise UserError(
            f"{path} is not a {kind} of a search by this version; expected format {file_format!r}"
        )
    return content
