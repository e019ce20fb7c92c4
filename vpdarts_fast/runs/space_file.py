"""What files say of a space and of its cells, so that whoever reads them need not know the space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.formats import shown
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.runs.values import mapping, whole
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing, Space

_WORD = re.compile(r"\w{1,100}")


def space_to_json(space: Space[Any]) -> Content:
    """The content of space.json: the names of alpha's rows and columns.

    Raises:
        UserError: a name in the tables is none that files can have.
    """
    content = {
        "name": space.name,
        "tables": [
            {"name": table.name, "edges": list(table.edges), "ops": [list(names) for names in table.ops]}
            for table in space.tables
        ],
    }
    try:
        tables_from_json(content)
    except ValueError as error:
        raise UserError(f"the space {space.name} has tables that cannot be searched: {error}") from error
    return content


def tables_from_json(values: Content) -> tuple[AlphaTable, ...]:
    """The inverse of `space_to_json`.

    Cell types and operations have to be words, since files and tags are named after them.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry is of another type.
        ValueError: an entry is of another form: no word, an edge without operations, a name that is there
            twice.
    """
    tables = []
    for entry in _list(values["tables"], "tables"):
        name = _word(mapping(entry, "a table")["name"], "the name of a table")
        edges = tuple(_text(edge, f"table {name}, an edge,") for edge in _list(entry["edges"], "edges"))
        ops = tuple(
            tuple(_word(op, f"table {name}, an operation,") for op in _list(names, f"table {name}, ops,"))
            for names in _list(entry["ops"], f"table {name}, ops,")
        )
        if len(edges) != len(ops):
            raise ValueError(f"table {name} has {len(edges)} edges, and operations of {len(ops)}")
        for names in (edges, *ops):
            _check_different(names, f"table {name}")
        tables.append(AlphaTable(name, edges, ops))
    _check_different([table.name for table in tables], "tables")
    return tuple(tables)


def drawing_to_json(space: Space[Any], genotype: Any) -> Content:
    """What pictures show of a choice: its cells, and which entries of alpha it consists of."""
    return {
        "cells": [
            {"name": cell.name, "nodes": list(cell.nodes), "edges": [list(edge) for edge in cell.edges]}
            for cell in space.drawings(genotype)
        ],
        "chosen": space.chosen(genotype).nonzero().tolist(),
    }


def cells_from_json(values: Content) -> tuple[CellDrawing, ...]:
    """The cells of `drawing_to_json`.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry is of another type.
        ValueError: an entry is of another form: an empty name, an edge to a node that there is not, or to one
            that does not come behind its source.
    """
    cells = []
    for entry in _list(values["cells"], "cells"):
        name = _text(mapping(entry, "a cell")["name"], "the name of a cell")
        nodes = tuple(_text(node, f"cell {name}, a node,") for node in _list(entry["nodes"], "nodes"))
        edges = []
        for source, target, op in entry["edges"]:
            target = whole(target, f"cell {name}, the target of an edge,", 1, len(nodes) - 1)
            source = whole(source, f"cell {name}, the source of an edge,", 0, target - 1)
            edges.append((source, target, _text(op, f"cell {name}, an operation,")))
        cells.append(CellDrawing(name, nodes, tuple(edges)))
    return tuple(cells)


def chosen_from_json(values: Content, tables: Sequence[AlphaTable]) -> tuple[tuple[int, int], ...]:
    """(row, column) of alpha [E, O] for each chosen operation, in ascending order.

    Args:
        values: what `drawing_to_json` made.
        tables: of the space.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry is of another type.
        ValueError: no operation of the space is there, or one is named twice.
    """
    rows = [names for table in tables for names in table.ops]
    chosen = []
    for row, op in values["chosen"]:
        row = whole(row, "chosen, a row,", 0, len(rows) - 1)
        chosen.append((row, whole(op, f"chosen, the operation of row {row},", 0, len(rows[row]) - 1)))
    if not chosen or chosen != sorted(set(chosen)):
        raise ValueError(f"chosen must be different operations in ascending order; got {shown(chosen)}")
    return tuple(chosen)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise ValueError(f"{name} must be a name; got {shown(value)}")
    return value


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{name} must be a word of letters, digits and underscores; got {shown(value)}")
    return value


def _list(values: Any, name: str) -> list[Any]:
    """Of at least one value."""
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list with something in it; got {shown(values)}")
    return values


def _check_different(names: Sequence[str], where: str) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: a name is there twice in {shown(list(names))}")
