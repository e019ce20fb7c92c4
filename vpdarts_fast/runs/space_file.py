"""What files say of a space and of its cells, so that whoever reads them need not know the space."""

from __future__ import annotations

from typing import Any

from vpdarts_fast.runs.formats import Content, shown
from vpdarts_fast.runs.values import mapping, whole
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing, Space


def space_to_json(space: Space[Any]) -> Content:
    """The content of space.json: the names of alpha's rows and columns."""
    return {
        "name": space.name,
        "tables": [
            {"name": table.name, "edges": list(table.edges), "ops": [list(names) for names in table.ops]}
            for table in space.tables
        ],
    }


def tables_from_json(values: Content) -> tuple[AlphaTable, ...]:
    """The inverse of `space_to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    tables = []
    for entry in values["tables"]:
        edges, ops = _texts(entry["edges"]), tuple(map(_texts, entry["ops"]))
        if len(edges) != len(ops) or not edges or not all(ops):
            raise ValueError(f"edges and ops must be as many, and some; got {shown(entry)}")
        tables.append(AlphaTable(_text(entry["name"]), edges, ops))
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
    """The cells of `drawing_to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    cells = []
    for entry in values["cells"]:
        nodes = _texts(mapping(entry, "a cell")["nodes"])
        edges = []
        for source, target, op in entry["edges"]:
            target = whole(target, "a node", 0, len(nodes) - 1)
            edges.append((whole(source, "a node", 0, target - 1), target, _text(op)))
        cells.append(CellDrawing(_text(entry["name"]), nodes, tuple(edges)))
    return tuple(cells)


def chosen_from_json(values: Content, shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(row, column) of alpha [E, O] for each chosen operation; raises as `cells_from_json`."""
    edges, ops = shape
    return tuple(
        (whole(row, "an edge", 0, edges - 1), whole(op, "an op", 0, ops - 1)) for row, op in values["chosen"]
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a name; got {shown(value)}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"expected names; got {shown(values)}")
    return tuple(map(_text, values))
