"""Reads pickles of plain data, and refuses every pickle that asks for anything else.

A pickle may name any importable function and have it called. The official benchmark files need only
containers, numbers, strings, `collections.OrderedDict` and, for latencies, numpy scalars; nothing
else can be reached from here.
"""

from __future__ import annotations

import bz2
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

_STRUCT_CODES = {"f4": "f", "f8": "d", "i4": "i", "i8": "q", "u4": "I", "u8": "Q", "b1": "?"}


class _ScalarType:
    """Stands in for `numpy.dtype`, whose own unpickling trusts the sizes and flags that it is given."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in _STRUCT_CODES:
            raise pickle.UnpicklingError(f"numpy type {code!r} is not a plain number")
        self.layout = "<" + _STRUCT_CODES[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = {"<": "<", ">": ">", "|": "<"}[state[1]]
        self.layout = byte_order + self.layout[1:]

    @classmethod
    def scalar(cls, kind: _ScalarType, data: bytes) -> float:
        """Stands in for numpy's scalar constructor; a Python number."""
        (value,) = struct.unpack(kind.layout, data)
        return float(value)


SAFE_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _ScalarType,
    ("numpy.core.multiarray", "scalar"): _ScalarType.scalar,
    ("numpy._core.multiarray", "scalar"): _ScalarType.scalar,
}
"""Everything a pickle may name: (module, name) -> what it gets instead."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return SAFE_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data") from None


MOST_EXPANSION = 1000
"""Official files unpack to some ten times their size; zeros by a million times."""
SLACK = 16 << 20
"""Bytes that every file may unpack to, however small it is."""


class TooLarge(Exception):
    """Says that a compressed file unpacks to more than a file of its size ever does.

    The rest was not unpacked.
    """


class _Unpacked(io.RawIOBase):
    """The contents of a bz2 file, up to a limit."""

    def __init__(self, compressed: BinaryIO) -> None:
        self._bz2 = bz2.BZ2File(compressed)
        self._left = MOST_EXPANSION * os.fstat(compressed.fileno()).st_size + SLACK

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._bz2.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise TooLarge
        return count

    def close(self) -> None:
        self._bz2.close()
        super().close()


def load_bz2_pickle(file: BinaryIO) -> Any:
    """The object in a bz2-compressed pickle, which is an open file.

    Raises:
        pickle.UnpicklingError: the pickle names something outside `SAFE_GLOBALS`; nothing was called.
        TooLarge: it unpacks to more than `MOST_EXPANSION` times its size.
        Exception: of nearly any type, for damaged data.
    """
    with io.BufferedReader(_Unpacked(file), buffer_size=1 << 20) as unpacked:
        return _RestrictedUnpickler(unpacked).load()
