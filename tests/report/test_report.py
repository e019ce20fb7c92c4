"""Pictures and TensorBoard logs, from run folders made up here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import run_python
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from nas_bench_201_runs import (
    MIXED,
    PAPER,
    PRUNING,
    WARMUP,
    make_epoch,
    make_result,
    write_run,
)
from PIL import Image
from places import ROOT

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.__main__ import main
from vpdarts_fast.report.cell import cell_figure, draw_cell
from vpdarts_fast.report.curves import curves_figure
from vpdarts_fast.report.heat_map import alpha_figures, importance_figures
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.report.style import OP_COLOURS, SERIES_COLOURS
from vpdarts_fast.report.tensorboard import TensorBoardLog
from vpdarts_fast.runs.formats import EPOCH, RESULT
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.nas_bench_201.genotype import OPS, Genotype

SPACE = NasBench201()
ALL_PICTURES = ["cell.png", "cell.svg", "alpha.png", "importance.png", "curves.png"]
SIZES = {"cell.png": (1500, 645), "alpha.png": (1500, 1125), "importance.png": (1500, 1125)}


def all_epochs(**options: bool) -> list[dict[str, Any]]:
    return [make_epoch(number, **options) for number in range(WARMUP + PRUNING)]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", all_epochs(), make_result())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pictures of a finished run."""
    return draw_pictures(write_run(tmp_path_factory.mktemp("drawn"), all_epochs(), make_result()))


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def xs(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_ydata())]


def text_in(svg: Path) -> list[str]:
    """The texts of an SVG file, which stand in the comments before their outlines."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text())


def test_a_finished_run_gets_all_pictures(drawn: list[Path]) -> None:
    assert names(drawn) == ALL_PICTURES
    for path in drawn:
        if path.suffix == ".svg":
            continue
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == SIZES.get(path.name, (1500, 1110))
            assert image.info["Title"] == str(PAPER)
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None and len(colours) > 50, f"{path.name} is nearly blank"
    labels = text_in(drawn[1])
    assert str(PAPER) in labels
    assert sorted(label for label in labels if label in OPS) == sorted(PAPER.ops)


def test_cell_svg_names_every_op_and_node(tmp_path: Path) -> None:
    draw_cell(SPACE.drawings(MIXED), tmp_path / "cell.svg", title="a title")
    assert sorted(text_in(tmp_path / "cell.svg")) == sorted(
        [*MIXED.ops, "0", "1", "2", "3", "input", "output", "a title"]
    )


@pytest.mark.parametrize("op", OPS)
def test_cell_labels_overlap_nothing(op: str) -> None:
    figure = cell_figure(SPACE.drawings(Genotype((op,) * 6)), str(PAPER))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.subfigs[0].axes
    labels = [text.get_bbox_patch() or text for text in axes.texts if not text.get_text().isdigit()]
    nodes = [patch for patch in axes.patches if isinstance(patch, Circle)]
    boxes = [artist.get_window_extent() for artist in [*labels, *nodes]]
    assert len(boxes) == 6 + 2 + 4
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)


def test_each_op_has_one_colour_in_all_pictures(finished: Path) -> None:
    assert len({*(OP_COLOURS[op] for op in OPS), *SERIES_COLOURS}) == len(OPS) + len(SERIES_COLOURS)

    (axes,) = cell_figure(SPACE.drawings(MIXED)).subfigs[0].axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert [to_hex(arrow.get_edgecolor()).upper() for arrow in arrows] == [OP_COLOURS[op] for op in MIXED.ops]
    assert [arrow.get_linestyle() != "solid" for arrow in arrows] == [op == "none" for op in MIXED.ops]

    run = read_run(finished)
    for figures in (alpha_figures(run), importance_figures(run)):
        (figure,) = figures.values()
        axes = figure.subfigs[0].axes[0]
        swatches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        colours = [to_hex(swatch.get_facecolor()).upper() for swatch in swatches]
        assert colours == [OP_COLOURS[op] for op in OPS] * 6
        assert [label.get_text() for label in axes.get_yticklabels()] == list(OPS) * 6


def test_alpha_map_shows_the_alphas_and_the_boundary(finished: Path) -> None:
    axes = alpha_figures(read_run(finished))["cell"].subfigs[0].axes[0]
    expected = np.array([epoch["alpha"] for epoch in all_epochs()]).reshape(-1, 30).T
    np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), expected)
    low, high = axes.images[0].get_clim()
    assert -low == high == expected.max(), "zero must be the middle of the colours"
    assert [xs(line)[0] for line in axes.lines if line.get_linestyle() == "--"] == [WARMUP - 0.5]
    assert {"warm-up", "pruning", "0→1", "2→3"} <= {text.get_text() for text in axes.texts}


def test_importance_map_shows_points_lost_and_marks_the_kept_ops(finished: Path) -> None:
    axes = importance_figures(read_run(finished))["cell"].subfigs[0].axes[0]
    evaluations = [epoch["importance"] for epoch in all_epochs()[WARMUP:]] + [make_result()["importance"]]
    expected = np.stack([60 - np.array(entry["accuracy"]).ravel() for entry in evaluations], axis=1)
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected)
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["final", "9"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [xs(line)[0] for line in dots] == list(range(PRUNING + 1))
    for line, genotype in zip(dots, [MIXED] * PRUNING + [PAPER], strict=True):
        assert [row % 5 for row in ys(line)] == list(genotype.choices)


def test_curves_show_every_series(finished: Path) -> None:
    losses, accuracies, benchmark = curves_figure(read_run(finished)).subfigs[0].axes
    curves = {line.get_label(): line for line in accuracies.lines if line.get_marker() == "o"}
    assert list(curves) == ["weights", "alpha", "leave-one-out base"]
    assert ys(curves["weights"]) == [10 + 5 * number for number in range(10)]
    base = ys(curves["leave-one-out base"])
    assert [value == 60 for value in base] == [False] * WARMUP + [True] * (PRUNING + 1)
    assert [line.get_label() for line in losses.lines if line.get_marker() == "o"] == ["weights", "alpha"]
    assert benchmark.lines[0].get_label() == "cifar10_test_200ep\nlast: 94.36"
    assert ys(benchmark.lines[0])[-1] == 94.36


def test_a_run_that_has_only_warmed_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", all_epochs()[:WARMUP])
    assert names(draw_pictures(run)) == [name for name in ALL_PICTURES if name != "importance.png"]
    assert f"{MIXED} (epoch 3, unfinished)" in text_in(run / "cell.svg")


@pytest.mark.parametrize("number", [0, WARMUP])
def test_a_single_epoch(tmp_path: Path, number: int) -> None:
    run = write_run(tmp_path / "run", [make_epoch(number)])
    assert ("importance.png" in names(draw_pictures(run))) == (number == WARMUP)


def test_selection_by_alpha_has_no_importance_picture(tmp_path: Path) -> None:
    epochs = all_epochs(importance=False, benchmark=False)
    run = write_run(tmp_path / "run", epochs, make_result(importance=False, benchmark=False))
    assert names(draw_pictures(run)) == [name for name in ALL_PICTURES if name != "importance.png"]
    assert len(curves_figure(read_run(run)).subfigs[0].axes) == 2, "no benchmark, no panel for it"


def test_a_last_line_that_was_cut_off_is_ignored(tmp_path: Path) -> None:
    line = json.dumps(make_epoch(6))
    for length in (1, 40, len(line) - 1):
        run = write_run(tmp_path / "run", all_epochs()[:6], tail=line[:length])
        assert [epoch.number for epoch in read_run(run).epochs] == list(range(6))
    run = write_run(tmp_path / "run", all_epochs()[:6], tail=line)
    assert read_run(run).epochs[-1].number == 6, "a whole line counts even without its line break"


def test_an_epoch_written_again_after_resuming_replaces_the_first(tmp_path: Path) -> None:
    again = make_epoch(2) | {"weights_loss": 0.125}
    run = read_run(write_run(tmp_path / "run", [*all_epochs()[:4], again]))
    assert [epoch.number for epoch in run.epochs] == [0, 1, 2, 3]
    assert run.epochs[2].weights_loss == 0.125


def test_values_that_are_missing_leave_gaps(tmp_path: Path) -> None:
    epochs = all_epochs()
    epochs[2]["weights_loss"] = None
    epochs[5]["alpha"] = [[None] * 5] * 6
    epochs[6]["importance"]["accuracy"][3][2] = None
    run = write_run(tmp_path / "run", epochs, make_result())
    assert names(draw_pictures(run)) == ALL_PICTURES
    all_null = write_run(tmp_path / "null", [make_epoch(0) | {"alpha": [[None] * 5] * 6}])
    low, high = alpha_figures(read_run(all_null))["cell"].subfigs[0].axes[0].images[0].get_clim()
    assert -low == high == 1e-3


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"epoch": 1,', "not valid JSON"),
        ("[1, 2]", r"expected a JSON object; got \[1, 2\]"),
        (json.dumps(without(make_epoch(1), "alpha")), "the entry 'alpha' is missing"),
        (json.dumps(make_epoch(1) | {"alpha": [[0.2] * 4] * 6}), r"alpha must have shape \[6, 5\]"),
        (json.dumps(make_epoch(1) | {"alpha": [[0.2], [0.2, 0.3]]}), ""),
        (json.dumps(make_epoch(1) | {"phase": "a rest"}), "phase must be a word, as warm-up or pruning"),
        (json.dumps(make_epoch(1) | {"genotype": "|none~0|"}), r"architecture string '\|none~0\|'"),
        (json.dumps(make_epoch(1) | {"importance": [1]}), ""),
        (json.dumps(make_epoch(1) | {"genotype": 7}), ""),
        (json.dumps(make_epoch(1) | {"benchmark": 94.36}), ""),
        (
            json.dumps(make_epoch(1) | {"weights_loss": "low"}),
            "weights_loss must be a finite number",
        ),
    ],
)
def test_malformed_metrics_are_refused(tmp_path: Path, line: str, complaint: str) -> None:
    run = write_run(tmp_path / "run", [make_epoch(0)], tail=line + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line 2, is damaged: {complaint}"):
        draw_pictures(run)
    assert not list(run.glob("*.png"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("3", "expected a JSON object; got 3"),
        (json.dumps(without(make_result(), "architecture")), "the entry 'architecture' is missing"),
        (json.dumps(make_result() | {"architecture": "?"}), "architecture string"),
    ],
)
def test_a_malformed_result_is_refused(finished: Path, text: str, complaint: str) -> None:
    (finished / "result.json").write_text(text)
    with pytest.raises(UserError, match=rf"result\.json is damaged: {complaint}"):
        draw_pictures(finished)


def make_nothing(folder: Path) -> None:
    pass


def make_empty_folder(folder: Path) -> None:
    folder.mkdir()


def make_empty_metrics(folder: Path) -> None:
    write_run(folder, [])


def make_partial_metrics(folder: Path) -> None:
    write_run(folder, [], tail='{"epoch": 0, "pha')


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (make_nothing, "no folder .*expected the one into which a search wrote metrics.jsonl"),
        (make_empty_folder, "cannot read .*metrics.jsonl: No such file"),
        (make_empty_metrics, "no complete epoch yet"),
        (make_partial_metrics, "no complete epoch yet"),
    ],
)
def test_a_folder_without_a_run_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], None],
    complaint: str,
) -> None:
    folder = tmp_path / "run"
    prepare(folder)
    with pytest.raises(UserError, match=complaint):
        draw_pictures(folder)
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(f"error: .*{complaint}", captured.err)


def test_draw_cell_refuses_other_formats_and_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png or \.svg"):
        draw_cell(SPACE.drawings(PAPER), tmp_path / "cell.jpeg")
    with pytest.raises(UserError, match="cannot write the picture"):
        draw_cell(SPACE.drawings(PAPER), tmp_path / "missing" / "cell.png")


def test_command_line_draws_without_pyplot(finished: Path, tmp_path: Path) -> None:
    """pyplot would keep every figure alive, pick a window system and not be safe in threads."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from vpdarts_fast.report.__main__ import main; status = main(sys.argv[1:]);"
        "sys.exit(3 if 'matplotlib.pyplot' in sys.modules else status)"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    status, output = run_python([str(program), str(finished)], tmp_path, environment)
    assert status == 0, output
    assert output.split() == [str(finished / name) for name in ALL_PICTURES]


def test_pictures_are_the_same_from_several_threads(tmp_path: Path, drawn: list[Path]) -> None:
    runs = [write_run(tmp_path / str(number), all_epochs(), make_result()) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw_pictures, runs))
    for expected in drawn:
        if expected.suffix == ".png":
            for run in runs:
                assert (run / expected.name).read_bytes() == expected.read_bytes(), expected.name


def test_tensorboard_log_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path / "log", SPACE.tables)
    for epoch in all_epochs():
        log.add_epoch(EPOCH.upgraded(epoch, "epoch"))
    log.add_result(RESULT.upgraded(make_result(), "result"))
    log.close()

    events = EventAccumulator(str(tmp_path / "log"), size_guidance={"scalars": 0, "tensors": 0}).Reload()

    def scalars(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    epochs = range(WARMUP + PRUNING)
    assert scalars("loss/weights") == pytest.approx({number: 2.3 - 0.1 * number for number in epochs})
    assert scalars("accuracy/alpha") == pytest.approx({number: 12 + 5 * number for number in epochs[WARMUP:]})
    assert scalars("alpha/0-1/nor_conv_1x1")[9] == pytest.approx(0.29)
    assert scalars("importance/0-3/skip_connect") == pytest.approx(dict.fromkeys(range(WARMUP, 11), 20))
    assert scalars("accuracy/leave_one_out_base") == dict.fromkeys(range(WARMUP, 11), 60)
    assert scalars("benchmark/cifar10_test_200ep")[10] == pytest.approx(94.36)
    assert scalars("decay") == pytest.approx({number: 1 - (number - 4) / 6 for number in epochs[WARMUP:]})
    assert scalars("learning_rate").keys() == scalars("seconds/train").keys() == set(epochs)
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("alpha/")]) == 30
    texts = [
        event.tensor_proto.string_val[0].decode() for event in events.Tensors("architecture/text_summary")
    ]
    assert texts == [f"`{MIXED}`"] * len(epochs) + [f"`{PAPER}`"]
    (image,) = events.Images("cell")
    assert (image.width, image.height) == SIZES["cell.png"]


@pytest.mark.usefixtures("no_tensorboard")
def test_tensorboard_missing_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'vpdarts-fast\[tensorboard\]'"):
        TensorBoardLog(tmp_path, SPACE.tables)
    assert not list(tmp_path.iterdir())
