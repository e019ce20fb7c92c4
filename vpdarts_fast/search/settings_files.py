"""Settings as JSON: groups and parts become objects, a path a list of places."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.runs.formats import shown

Group = TypeVar("Group")


def to_values(group: Any, folder: Path | None) -> dict[str, Any]:
    """Turns a dataclass of settings into plain values, with its groups and parts; a part has its name.

    A path becomes a list of places: the absolute one and, for a file in `folder`, the one relative to that
    folder, which is still right when both have moved together.
    """
    values: dict[str, Any] = {"name": group.name} if isinstance(group, Part) else {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            value = to_values(value, folder)
        elif isinstance(value, Path):
            value = _places(value, folder)
        values[field.name] = value
    return values


def from_values(group: type[Group], values: Any, source: str, folder: Path | None) -> Group:
    """Makes a dataclass of settings of plain values, as the inverse of `to_values`.

    Raises:
        UserError: naming `source`, for missing or unknown settings, values of another type or out of bounds,
            and parts whose names are not known.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold the settings of {group.__name__}; got {shown(values)}")
    values = dict(values)
    if issubclass(group, Part):
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise UserError(f"{source}: --{group.kind} must have a name; got {shown(name)}")
        try:
            group = group.named(name)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    hints = get_type_hints(group)
    names = {field.name for field in dataclasses.fields(group)}  # type: ignore[arg-type]
    if set(values) != names:
        odd = sorted(map(str, set(values) ^ names))
        raise UserError(f"{source} has missing or unknown settings: {', '.join(odd)[:200]}")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        kind = get_origin(hint) or hint  # of Space[Any], Space
        if isinstance(kind, type) and (issubclass(kind, Part) or dataclasses.is_dataclass(kind)):
            converted[name] = from_values(kind, value, source, folder)
            continue
        converted[name] = _converted(value, hint, folder)
        if not _fits(converted[name], hint):
            raise UserError(f"{source}: {name} must be {_described(hint)}; got {shown(value)}")
    try:
        return group(**converted)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _places(path: Path, folder: Path | None) -> list[str]:
    absolute = path.expanduser().absolute()
    if folder is None:
        return [str(absolute)]
    # Where symbolic links lead: that is where the file system starts from when it goes up.
    return [str(absolute), os.path.relpath(absolute.resolve(), folder.resolve())]


def _converted(value: Any, hint: Any, folder: Path | None) -> Any:
    """JSON knows neither paths nor tuples; of a path's places the first one where there is something."""
    if Path in get_args(hint) and isinstance(value, list):
        if not value or not all(isinstance(place, str) and place and "\0" not in place for place in value):
            return value
        base = (folder or Path()).resolve()
        candidates = [
            Path(place if Path(place).is_absolute() else os.path.normpath(base / place)) for place in value
        ]
        return next(filter(os.path.exists, candidates), candidates[0])
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a setting's type; a whole number will do for a float, a bool for no number.

    Numbers are finite and fit into 64 bits.
    """
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, (int, float)) and not -(1 << 63) <= value < 1 << 63:  # nor is NaN
        return False
    kind = (int, float) if hint is float else hint
    return isinstance(value, kind) and isinstance(value, bool) == (hint is bool)


def _described(hint: Any) -> str:
    """A setting's type for people."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("None", "null")


def leaves(group: Any) -> Iterator[tuple[str, Any]]:
    """Yields the settings of a dataclass of groups by their names; a part's name comes before its own."""
    for each in dataclasses.fields(group):
        value = getattr(group, each.name)
        if isinstance(value, Part):
            yield each.name, value.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield each.name, value


def with_settings(group: Any, settings: dict[str, Any]) -> Any:
    """The group with other values; takes those that it finds out of `settings`."""
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(group):
        value = getattr(group, each.name)
        if isinstance(value, Part) and each.name in settings:
            part = settings.pop(each.name)
            value = type(value).named(part)() if isinstance(part, str) else part
        if dataclasses.is_dataclass(value):
            changes[each.name] = with_settings(value, settings)
        elif each.name in settings:
            changes[each.name] = settings.pop(each.name)
    return dataclasses.replace(group, **changes)
