"""Checkpoints and snapshots: tensors and plain values, checked before and after they are read.

A file is what `torch.save` makes, an uncompressed zip archive, with a digest of all its bytes as the
archive's comment: `torch.load` reads it as any other.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.formats import CHANGED, CHECKPOINT, Format

COMMENT = b"vpdarts_fast blake2b "
"""Begins the archive's comment; the digest follows in hexadecimal digits."""

COMMENT_LENGTH = len(COMMENT) + 2 * 16


def save(path: Path, content: dict[str, Any], file_format: Format = CHECKPOINT) -> None:
    """Writes a checkpoint, or a file of another format, atomically; tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(file_format.marked(content), buffer)
    write_atomically(path, _with_digest(buffer.getvalue()))


def load(path: Path, file_format: Format = CHECKPOINT) -> dict[str, Any]:
    """Reads what `save` wrote, in this version or an older one, brought up to date.

    Raises:
        UserError: it is missing, damaged, of a newer version or something else.
    """
    kind = file_format.kind
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"no {kind} at {path}; was the run stopped in its first epoch? Start it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    has_digest = data[-COMMENT_LENGTH:].startswith(COMMENT)
    if has_digest and _with_digest(data[:-COMMENT_LENGTH]) != data:
        raise file_format.damaged(str(path), CHANGED)
    try:
        _check_archive(data)
    except Exception as error:  # zipfile raises many kinds on a damaged file
        raise UserError(f"{path} is damaged or not a {kind}: {error}; {file_format.remedy}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles, which `torch.load` refuses all the same
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's own words advise to read it by running it
        raise UserError(
            f"{path} is damaged or not a {kind}: it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch.load raises many kinds on a damaged file, some with such advice too
        raise UserError(
            f"{path} is damaged or not a {kind}: PyTorch cannot read it ({type(error).__name__}); "
            f"{file_format.remedy}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no {kind}; got {type(content).__name__}")
    if file_format.version_of(content, str(path)) > 1 and not has_digest:
        raise file_format.damaged(str(path), "its digest is missing")
    return file_format.upgraded(content, str(path))


def _with_digest(archive: bytes) -> bytes:
    """The archive with its digest as comment, whose length is the last field of what comes before it."""
    body = archive[:-2] + struct.pack("<H", COMMENT_LENGTH)
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return body + COMMENT + digest.encode()


def _check_archive(data: bytes) -> None:
    """Raises unless the checksums of an archive fit, and it takes no more memory than its file has bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its entries overlap")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} does not fit")
