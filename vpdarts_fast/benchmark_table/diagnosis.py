"""What is wrong with a file that should be an official benchmark, and what to do: one message per cause.

Nothing of what other libraries say is passed on: PyTorch's errors advise to switch its protection off.
"""

from __future__ import annotations

import pickle
import re
import shlex
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from vpdarts_fast.benchmark_table.restricted_pickle import TooLarge
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import machine

EXPECTED = (
    "expected an unpacked directory NATS-tss-v1_0-*-simple, a file NATS-tss-v1_0-*.pickle.pbz2 or a file "
    "NAS-Bench-201-v1_*.pth"
)
WHOLE_FILE = 20 << 30
"""Bytes that the single files take as Python objects."""
LARGE = 200 << 20
"""A file of this size may be one of them; those of a -simple directory are smaller by far."""


def check_kind(path: Path) -> None:
    """Looks at name and first bytes, before anything is read that may take minutes.

    Raises:
        UserError: it is something else that people try: an archive, the size search space, a web page.
    """
    if "NATS-sss" in path.name:
        raise size_search_space(path)
    if path.is_dir():
        return
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is neither a file nor a directory; {EXPECTED}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        is_tar = tarfile.is_tarfile(path)
    except (OSError, EOFError) as error:
        raise unreadable(path, error) from error
    if not start:
        raise UserError(f"{path} is empty: its download has not finished; download it again")
    if is_tar:
        name = path.name.partition(".tar")[0]
        weights = (
            " That holds trained weights, which are not needed: prefer -simple." if "-full" in name else ""
        )
        raise UserError(
            f"{path} is a tar archive as it was downloaded: unpack it with `tar xf {shlex.quote(str(path))}` "
            f"and name the directory that comes out (such as {name}).{weights}"
        )
    if start.startswith(b"arch,"):
        raise UserError(f"{path} is a table already; use it as it is (--benchmark-table {path})")
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start, flags=re.IGNORECASE):
        raise UserError(
            f"{path} is a web page, not a benchmark: the download asked for something, a confirmation for "
            "instance; open its address in a browser and download the file itself"
        )
    for magic, tool in _COMPRESSED:
        if start.startswith(magic):
            unpack = f"{tool} -dc < {shlex.quote(str(path))} > unpacked"
            raise UserError(f"{path} is compressed: run `{unpack}` and convert `unpacked`; {EXPECTED}")
    if start.startswith(b"PK"):
        _check_zip(path)


_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "xz"))


def _check_zip(path: Path) -> None:
    """Raises `UserError` unless a zip file is as torch.save writes it, or too damaged to tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} holds a compiled network (TorchScript), not a benchmark; {EXPECTED}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive: unpack it first; {EXPECTED}")


def size_search_space(path: Path) -> UserError:
    """The error for a file of the other half of NATS-Bench, the size search space."""
    return UserError(
        f"{path} is of NATS-Bench's size search space (NATS-sss): its architectures are numbers of "
        f"channels, not cells. NAS-Bench-201's are in the topology search space, NATS-tss; {EXPECTED}"
    )


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raises `UserError` for the architectures of the size search space, as in ``64:64:64:64:64``."""
    if names and re.fullmatch(r"\d+(:\d+)+", names[0]):
        raise size_search_space(path)


def not_official(path: Path, reason: str) -> UserError:
    """The error for a file of plain data that is organised in another way."""
    return UserError(f"{path} is not an official benchmark file: {reason}; {EXPECTED}")


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for what came while a file was read: permissions, memory, a refused pickle or damage."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"cannot read {path}: {error.strerror}")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return out_of_memory(path)
    if isinstance(error, TooLarge):
        return UserError(
            f"{path} was not read: unpacked it is larger than any benchmark file of its size; {EXPECTED}"
        )
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)|asks for (\S+),", str(error))
        if refused:
            name = refused[1] or refused[2]
            if name.startswith("torch."):
                return UserError(
                    f"{path} was not read: it asks for {name}, since it holds trained weights, and only "
                    f"plain data is accepted. It is of a -full archive or a checkpoint; {EXPECTED}"
                )
            return UserError(
                f"{path} was not read: its pickle asks for {name}, and only plain data is accepted; download "
                "the benchmark file again from its authors"
            )
    if isinstance(error, EOFError) or "truncated" in str(error) or "central directory" in str(error):
        return UserError(f"{path} ends too early: its download was cut off; download it again")
    return UserError(
        f"{path} is damaged, or not a benchmark file ({type(error).__name__}); {EXPECTED}. "
        "If it is one, download it again"
    )


def out_of_memory(path: Path) -> UserError:
    """The error for memory that ends; that a small file wants so much is another matter."""
    ended = f"memory ({machine.readable(machine.memory())} in all) ended while {path} was read"
    if not path.is_dir() and path.stat().st_size < LARGE:
        return UserError(
            f"{ended}, and official files of its size take little: either other programs leave too little, "
            f"or it is another file; {EXPECTED}"
        )
    return UserError(
        f"{ended}. It is not damaged: as Python objects a single file takes about "
        f"{machine.readable(WHOLE_FILE)}. NATS-Bench's directory NATS-tss-v1_0-*-simple, which is read one "
        "architecture at a time, needs little; or convert once on a machine with more memory"
    )


def memory_note(path: Path) -> str | None:
    """What to tell the user beforehand: that a large single file will probably not fit."""
    if path.is_dir() or path.stat().st_size < LARGE or machine.memory() >= WHOLE_FILE:
        return None
    return (
        f"note: {path} takes about {machine.readable(WHOLE_FILE)} of memory while it is read, and there is "
        f"{machine.readable(machine.memory())}; the directory NATS-tss-v1_0-*-simple needs little"
    )
