"""Triton's interpreter in two thirds of its time: what it works out anew at each call, and for nothing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any


def make_faster() -> None:
    """Of what is not there, in another version of Triton, nothing is changed."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    _leave_out_overflow(interpreter.interpreter_builder)
    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        _remember_builtins(interpreter)
    if hasattr(interpreter, "_get_np_dtype"):
        _remember_dtypes(interpreter)


def _leave_out_overflow(builder: Any) -> None:
    """It no longer works out which integers overflow, which it reports only if its option `debug` is set."""
    if getattr(builder.options, "sanitize_overflow", False) and not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _remember_builtins(interpreter: Any) -> None:
    """In each call of a function it searches a module for what it replaces there: always the same names."""
    patch_attr, is_builtin = interpreter._patch_attr, interpreter.tl.core.is_builtin
    names: dict[Any, list[str]] = {}

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in names:  # nothing of it is replaced yet
            names[package] = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if is_builtin(member):
                patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin


def _remember_dtypes(interpreter: Any) -> None:
    """It makes a table of all dtypes to look one up."""
    look_up, found = interpreter._get_np_dtype, {}

    def np_dtype(dtype: Any) -> Any:
        if dtype.name not in found:
            found[dtype.name] = look_up(dtype)
        return found[dtype.name]

    interpreter._get_np_dtype = np_dtype
