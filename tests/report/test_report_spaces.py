"""Pictures and TensorBoard logs of spaces with several cell types, DARTS and one whose code is nowhere."""

from __future__ import annotations

import random
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from PIL import Image
from report_cases import (
    BASE,
    DARTS,
    DARTS_CHOICES,
    DARTS_SPACE,
    PRUNING,
    RAGGED_CHOICES,
    RAGGED_SPACE,
    SPACES,
    WARMUP,
    alphas,
    epochs_of,
    is_there,
    lost,
    result_of,
    write_space_run,
)

from vpdarts_fast.report.cell import cell_figure
from vpdarts_fast.report.finalists import finalists_figure
from vpdarts_fast.report.heat_map import alpha_figures, importance_figures
from vpdarts_fast.report.layout import Arrow, arrange
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.report.style import OP_COLOURS, SERIES_COLOURS, op_colours
from vpdarts_fast.report.tensorboard import TensorBoardLog
from vpdarts_fast.runs.space_file import tables_from_json
from vpdarts_fast.search import RunFolder
from vpdarts_fast.search.console import result_lines
from vpdarts_fast.spaces.darts.genotype import DARTS_OPS
from vpdarts_fast.spaces.darts.space import NODE_NAMES
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    return write_space_run(tmp_path / "run", RAGGED_SPACE, RAGGED_CHOICES)


@pytest.mark.parametrize("name", SPACES)
def test_a_finished_run_gets_a_picture_for_each_cell_type(name: str, tmp_path: Path) -> None:
    space, choices = SPACES[name]
    types = [table["name"] for table in space["tables"]]
    paths = draw_pictures(write_space_run(tmp_path / "run", space, choices))
    maps = [f"{kind}-{cell_type}.png" for kind in ("alpha", "importance") for cell_type in types]
    assert [path.name for path in paths] == ["cell.png", "cell.svg", *maps, "curves.png", "finalists.png"]
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.info["Title"] == choices[-1][0]
                assert image.width >= 1500 and image.height < 4000
    text, drawing = choices[-1]
    labels = re.findall(r"<!-- (.*?) -->", paths[1].read_text())
    expected = [op for cell in drawing["cells"] for _, _, op in cell["edges"] if op != "concat"]
    ops = {op for table in space["tables"] for names in table["ops"] for op in names}
    assert sorted(label for label in labels if label in ops) == sorted(expected)
    assert set(types) <= set(labels)
    assert text.split()[0] in " ".join(labels)


@pytest.mark.parametrize("name", SPACES)
def test_heat_maps_have_a_row_for_each_operation_that_is_there(name: str, tmp_path: Path) -> None:
    space, choices = SPACES[name]
    run = read_run(write_space_run(tmp_path / "run", space, choices))
    last = WARMUP + PRUNING
    of_kinds = (
        (alpha_figures(run), [alphas(space, number) for number in range(last)]),
        (
            importance_figures(run),
            [lost(space, choices[0][1], number) for number in range(WARMUP, last)]
            + [lost(space, choices[-1][1], 99)],
        ),
    )
    ranges = set()
    for figures, tables in of_kinds:
        assert list(figures) == [table["name"] for table in space["tables"]]
        row = 0
        for table, figure in zip(space["tables"], figures.values(), strict=True):
            axes = figure.subfigs[0].axes[0]
            ops = [op for names in table["ops"] for op in names]
            assert [label.get_text() for label in axes.get_yticklabels()] == ops
            edges = [edge.replace("->", "→") for edge in table["edges"]]
            assert [text.get_text() for text in axes.texts if text.get_text() in edges] == edges
            rows = slice(row, row + len(edges))
            expected = np.stack([values[rows][is_there(space)[rows]] for values in tables], axis=1)
            np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected)
            ranges.add(axes.images[0].get_clim())
            row += len(edges)
    assert len(ranges) == 2, "a colour means the same for all cell types"


def test_marks_stand_at_the_chosen_operations(ragged: Path) -> None:
    run = read_run(ragged)
    rows = {}
    for name, figure in importance_figures(run).items():
        dots = [line for line in figure.subfigs[0].axes[0].lines if line.get_marker() == "o"]
        rows[name] = [np.asarray(line.get_ydata()).tolist() for line in dots]
    # down: pool, conv, none of 0->1; conv of left. up: skip; skip, big_conv; conv.
    assert rows == {
        "down": [[0, 3]] * PRUNING + [[1, 3]],
        "up": [[0, 1, 3]] * PRUNING + [[0, 2, 3]],
    }


def test_the_rows_of_darts_are_as_high_as_those_of_nas_bench_201(tmp_path: Path) -> None:
    run = read_run(write_space_run(tmp_path / "run", DARTS_SPACE, DARTS_CHOICES))
    for figure in alpha_figures(run).values():
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        axes = figure.subfigs[0].axes[0]
        labels = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert len(labels) == 14 * 8
        for one, other in pairwise(labels):
            assert not one.overlaps(other)
        assert axes.get_window_extent().height / len(labels) > 0.18 * figure.dpi


def test_absent_entries_are_not_values(ragged: Path) -> None:
    run = read_run(ragged)
    assert run.result is not None and run.result.importance is not None
    for table in (run.epochs[-1].alpha, run.result.importance.lost):
        np.testing.assert_array_equal(np.isnan(table), ~is_there(RAGGED_SPACE))
    assert run.epochs[-1].genotype is not None and run.epochs[0].genotype is None
    assert str(run.epochs[-1].genotype) == RAGGED_CHOICES[0][0]
    assert run.epochs[-1].genotype.chosen == ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0))
    assert [cell.name for cell in run.result.genotype.cells] == ["down", "up"]
    assert run.result.importance.base_accuracy == BASE


# Cells ------------------------------------------------------------------------------------------------------


def random_darts_cell(numbers: random.Random) -> CellDrawing:
    """Two operations for each node."""
    edges = [
        (source, node, numbers.choice(DARTS_OPS[1:]))
        for node in range(2, 6)
        for source in numbers.sample(range(node), 2)
    ]
    return CellDrawing("normal", NODE_NAMES, (*edges, *((node, 6, "concat") for node in range(2, 6))))


def check_that_nothing_overlaps(figure: Figure, count: int) -> None:
    """Of labels, nodes and what is beside them, all of which are within the figure."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.subfigs[0].axes:
        nodes = [patch for patch in axes.patches if not isinstance(patch, FancyArrowPatch)]
        inside = [
            text for text in axes.texts if any(abs(text.get_position()[0] - middle(node)) < 0.01 and
            text.get_position()[1] == -0.01 for node in nodes)
        ]  # fmt: skip
        labels = [text.get_bbox_patch() or text for text in axes.texts if text not in inside]
        boxes = [artist.get_window_extent() for artist in [*labels, *nodes]]
        assert len(boxes) == count
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)


def middle(node: Any) -> float:
    """Where on the row a node stands."""
    if isinstance(node, Circle):
        return float(node.center[0])
    xs = node.get_xy()[:, 0]
    return float(xs.min() + xs.max()) / 2


def test_labels_of_darts_cells_overlap_nothing() -> None:
    numbers = random.Random(0)
    for _ in range(6):
        figure = cell_figure([random_darts_cell(numbers)], "Genotype(...)")
        check_that_nothing_overlaps(figure, count=8 + 7 + 3)


def test_labels_of_a_cell_with_long_names_overlap_nothing() -> None:
    edges = [(0, 1, "an_operation_with_a_long_name"), (0, 2, "another_one"), (1, 2, "x"), (0, 3, "x")]
    cell = CellDrawing("one", ("the first of all nodes", "b", "c $x_", "d"), tuple(edges))
    check_that_nothing_overlaps(cell_figure([cell]), count=4 + 4 + 3)


def test_concat_is_thin_and_has_no_label() -> None:
    (axes,) = cell_figure([random_darts_cell(random.Random(1))]).subfigs[0].axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert [arrow.get_linewidth() for arrow in arrows] == [3] * 8 + [1.2] * 4
    assert len({to_hex(arrow.get_edgecolor()) for arrow in arrows[8:]}) == 1
    assert "concat" not in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in axes.texts].count("input") == 2


def arcs_that_cross(arrows: tuple[Arrow, ...]) -> int:
    crossings = 0
    for one, other in combinations([arrow for arrow in arrows if arrow.side], 2):
        (first, last), (begin, end) = sorted((one.edge, other.edge))
        crossings += one.side == other.side and first < begin < last < end
    return crossings


def test_arrows_take_the_sides_on_which_they_cross_least() -> None:
    nas_bench_201 = arrange(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)))
    assert [(arrow.side, arrow.level) for arrow in nas_bench_201] == [
        (0, 0), (1, 1), (0, 0), (1, 2), (-1, 1), (0, 0),
    ]  # fmt: skip
    assert arcs_that_cross(arrange(((0, 2), (1, 3), (2, 4), (3, 5), (0, 5)))) == 0
    twice = arrange(((0, 1), (0, 1), (0, 1)))
    assert sorted(abs(arrow.side) for arrow in twice) == [0, 1, 1], "no arrow hides another"
    whole = tuple((source, target) for target in range(9) for source in range(target))
    levels = [(arrow.edge, arrow.side, arrow.level) for arrow in arrange(whole)]
    for (one, side, level), (other, its_side, its_level) in combinations(levels, 2):
        if side and side == its_side and level == its_level:
            assert one[1] <= other[0] or other[1] <= one[0], "what lies over another is higher"


def test_a_single_node_can_be_drawn() -> None:
    check_that_nothing_overlaps(cell_figure([CellDrawing("one", ("x",), ())]), count=3)


# Colours ----------------------------------------------------------------------------------------------------


def test_colours_of_names() -> None:
    darts = op_colours(DARTS.tables)
    assert darts == {op: OP_COLOURS[op] for op in sorted(DARTS_OPS)}
    assert len({*darts.values(), *SERIES_COLOURS}) == len(DARTS_OPS) + len(SERIES_COLOURS)

    tables = [AlphaTable.uniform("cell", ["0->1"], ["zebra", "none", "skip_connect", "ape"])]
    colours = op_colours(tables)
    assert colours["none"] == OP_COLOURS["none"] and len(set(colours.values())) == 4
    turned = [AlphaTable.uniform("cell", ["0->1"], ["ape", "zebra", "skip_connect", "none"])]
    assert op_colours(turned) == colours, "by name, not by place"
    drawn = [CellDrawing("cell", ("0", "1"), ((0, 1, "a_cat"), (0, 1, "concat")))]
    assert op_colours(tables, drawn).items() > colours.items(), "what is drawn changes no colour"

    many = op_colours([AlphaTable.uniform("cell", ["0->1"], [f"op{number}" for number in range(40)])])
    assert len(many) == 40 and not set(many.values()) & set(SERIES_COLOURS)


# Finalists, TensorBoard, console ----------------------------------------------------------------------------


def test_long_names_of_finalists_are_told_by_what_is_different(tmp_path: Path) -> None:
    figure = finalists_figure(read_run(write_space_run(tmp_path / "run", DARTS_SPACE, DARTS_CHOICES)))
    assert figure is not None
    first, second = [label.get_text() for label in figure.subfigs[0].axes[0].get_yticklabels()]
    assert first == "(taken) as above"
    assert second.startswith("(search) … 1 … 0 skip_connect") and len(second) < 70


@pytest.mark.parametrize("name", SPACES)
def test_tensorboard_tags_have_the_cell_type(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    space, choices = SPACES[name]
    log = TensorBoardLog(tmp_path / "log", tables_from_json(space))
    log.add_epoch(epochs_of(space, choices)[-1])
    log.add_result(result_of(space, choices))
    log.close()
    events = EventAccumulator(str(tmp_path / "log"), size_guidance={"scalars": 0}).Reload()
    for kind, count in (("alpha", 1), ("importance", 2)):
        expected = {
            f"{kind}/{table['name']}/{edge.replace('->', '-')}/{op}"
            for table in space["tables"]
            for edge, names in zip(table["edges"], table["ops"], strict=True)
            for op in names
        }
        tags = {tag for tag in events.Tags()["scalars"] if tag.startswith(f"{kind}/")}
        assert tags == expected
        assert {len(events.Scalars(tag)) for tag in tags} == {count}
    (image,) = events.Images("cell")
    assert image.width > 1500


def test_a_result_without_an_index_says_none(tmp_path: Path) -> None:
    result = result_of(RAGGED_SPACE, RAGGED_CHOICES) | {"finalists": None}
    lines = result_lines(result, RunFolder(tmp_path))
    assert lines[0] == f"found: {RAGGED_CHOICES[-1][0]}" and not any(
        line.startswith("index") for line in lines
    )
