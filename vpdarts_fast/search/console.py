"""What a person sees of a search: progress bars on a terminal, plain lines everywhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from vpdarts_fast.data import GIVEN
from vpdarts_fast.report.tensorboard import TensorBoardLog, require_tensorboard
from vpdarts_fast.search.bars import RunConsole
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.finalists import Rung, rung_to_json
from vpdarts_fast.search.limits import shown
from vpdarts_fast.search.run_folder import RunFolder


class Console(RunConsole):
    """The observer of one search; use it as a context manager, and `begin` before the search does."""

    def __init__(self, run: RunFolder, config: SearchConfig, *, quiet: bool = False) -> None:
        super().__init__(run, "search", config.epochs, quiet=quiet)
        self._run, self._config = run, config
        self._tables = config.space.tables
        self._tensorboard: TensorBoardLog | None = None

    @override
    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._tensorboard:
            self._guarded("TensorBoard events", self._tensorboard.close)

    @override
    def begin(self, epoch: int) -> None:
        """Opens what is to be open while the search runs; `epoch` is the one that it begins with.

        Raises:
            UserError: TensorBoard is wanted and not installed.
        """
        if self._config.reporting.tensorboard:
            require_tensorboard()
            self._guarded("TensorBoard events", lambda: self._open_tensorboard(epoch))
        super().begin(epoch)

    def _open_tensorboard(self, epoch: int) -> None:
        folder = self._run.path / "tensorboard"
        self._tensorboard = TensorBoardLog(folder, self._tables, first_step=epoch)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Prints and logs how an epoch went, by its line of metrics.jsonl, and adds it to TensorBoard."""
        self.line(epoch_line(metrics, self._epochs))
        for text in member_lines(metrics["members"]):
            self.line(text)
        if tensorboard := self._tensorboard:
            self._guarded("TensorBoard events", lambda: tensorboard.add_epoch(metrics))

    def rung(self, rung: Rung) -> None:
        """Prints and logs the scores of finalists that were trained alike."""
        for text in rung_lines(rung):
            self.line(text)

    def result(self, result: dict[str, Any]) -> None:
        """Ends the bars, prints and logs what result.json holds, and adds it to TensorBoard."""
        self._stop_bars()
        for text in result_lines(result, self._run):
            self.line(text)
        if self._config.images.dataset != GIVEN:
            self.line(f"train what was found: {training_command(self._run.path)}")
        if tensorboard := self._tensorboard:
            self._guarded("TensorBoard events", lambda: tensorboard.add_result(result))


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """Says in one line how an epoch of so many went, by its line of metrics.jsonl."""
    parts = [f"epoch {metrics['epoch'] + 1:>{len(str(epochs))}}/{epochs} {metrics['phase']:<7}"]
    for trained in ("weights", "alpha"):
        if metrics[f"{trained}_loss"] is not None:
            loss, accuracy = metrics[f"{trained}_loss"], metrics[f"{trained}_accuracy"]
            parts.append(f"{trained} {loss:.3f} {accuracy:5.1f} %")
    if metrics["genotype"] is not None:
        parts.append(metrics["genotype"])
    if metrics["benchmark"] is not None:
        parts.append(benchmark_text(metrics["benchmark"]))
    seconds = metrics["seconds"]
    parts.append(f"train {seconds['train']:.1f} s")
    if seconds["leave_one_out"]:
        parts.append(f"leave-one-out {seconds['leave_one_out']:.1f} s{images_text(metrics['importance'])}")
    return "  ".join(parts)


def images_text(importance: dict[str, Any]) -> str:
    """Says on how many images an op was left out, on average, where ops raced; elsewhere it is empty."""
    if importance["op_images"] is None:
        return ""
    counts = [count for edge in importance["op_images"] for count in edge]
    return f" ({sum(counts) / len(counts):,.0f} images an op)"


def member_lines(members: Sequence[dict[str, Any]]) -> list[str]:
    """Says of each supernet of a committee how it trains, and what it would select by itself."""
    lines = []
    for number, member in enumerate(members, start=1):
        parts = [f"  supernet {number}"]
        if member["weights_loss"] is not None:
            parts.append(f"weights {member['weights_loss']:.3f} {member['weights_accuracy']:5.1f} %")
        if member["alpha_loss"] is not None:
            parts.append(f"alpha {member['alpha_loss']:.3f} {member['alpha_accuracy']:5.1f} %")
        if member["genotype"] is not None:
            table = "" if member["benchmark"] is None else "  " + benchmark_text(member["benchmark"])
            parts.append(f"alone {member['genotype']}{table}")
        lines.append("  ".join(parts))
    return lines


def rung_lines(rung: Rung) -> list[str]:
    """Says how finalists that were trained alike compare, the best first."""
    values = rung_to_json(rung)
    cells = sorted(values["cells"], key=lambda cell: -sum(cell["accuracy"]))
    lines = [f"finalists, {rung.steps:,} steps, judged on {values['images']:,} images:"]
    for cell in cells:
        accuracy = "  ".join(f"{value:5.2f} %" for value in cell["accuracy"])
        losses = "  ".join("diverged" if loss is None else f"{loss:.3f}" for loss in cell["training_loss"])
        behind = "" if cell["close"] else "  clearly worse"
        lines.append(f"  {accuracy}  training loss {losses}  {cell['architecture']}{behind}")
    return lines


def result_lines(result: dict[str, Any], run: RunFolder) -> list[str]:
    """Says what a search found, by its result.json."""
    lines = [f"found: {result['architecture']}"]
    if result["index"] is not None:
        lines.append(f"index: {result['index']}")
    if result["base_accuracy"] is not None:
        lines.append(f"supernet validation accuracy: {result['base_accuracy']:.2f} %")
    if result["benchmark"] is not None:
        lines.append(f"NAS-Bench-201 accuracy: {benchmark_text(result['benchmark'])}")
    if result["limits"] is not None:
        lines += limit_lines(result["limits"], result["architecture"])
    if result["finalists"] is not None:
        lines += finalist_lines(result["finalists"], result["architecture"])
    lines += member_lines(result["members"])
    seconds = "  ".join(f"{phase} {value:.1f} s" for phase, value in result["seconds"].items())
    return [*lines, seconds, f"result, metrics and pictures: {run.path}"]


def limit_lines(limits: dict[str, Any], architecture: str) -> list[str]:
    """Says what the found cell's network costs, and what would have been found without limits."""
    without = limits["unlimited"]
    lines = [f"cost: {costs_text(limits['costs'])}; at most {costs_text(limits['given'])}"]
    if without["architecture"] != architecture:
        lines.append(f"without limits: {without['architecture']}  {costs_text(without['costs'])}")
    return lines


def costs_text(costs: dict[str, float]) -> str:
    """Says what a network costs."""
    names = {"parameters": "parameters", "macs": "multiply-adds", "latency_ms": "ms for an image"}
    return ", ".join(f"{shown(value)} {names[cost]}" for cost, value in costs.items())


def training_command(run: Path) -> str:
    """The command that trains the network of what a search has found, by the folder of its run."""
    return f"python -m vpdarts_fast.train {shlex.quote(str(run))}"


def finalist_lines(finalists: dict[str, Any], architecture: str) -> list[str]:
    """Says how each round of finalists ended, and what the search alone would answer if that is another."""
    search, rounds = finalists["search"], finalists["rounds"]
    trained = {cell["architecture"] for one in rounds for rung in one["rungs"] for cell in rung["cells"]}
    lines = [f"finalists: {len(trained)} cells, {finalists['steps']:,} steps"]
    for one in rounds:
        others = len(one["tied"]) - 1
        tie = f", not to be told from {others} other{'s' if others > 1 else ''}" if others else ""
        verdict = "stays" if one["winner"] == one["incumbent"] else f"gives way to {one['winner']}"
        lines.append(f"  {one['incumbent']} {verdict}{tie} after {one['rungs'][-1]['steps']:,} steps")
    if search["architecture"] != architecture:
        table = "" if search["benchmark"] is None else "  " + benchmark_text(search["benchmark"])
        lines.append(f"the search alone: {search['architecture']}{table}")
    return lines


def benchmark_text(accuracies: dict[str, float]) -> str:
    """Says what accuracies after full training the table has, in per cent."""
    names = {"cifar10_test_200ep": "C10", "cifar100_test_200ep": "C100", "imagenet16_120_test_200ep": "IN16"}
    shown = [f"{short} {accuracies[column]:.2f}" for column, short in names.items() if column in accuracies]
    return "[" + " ".join(shown) + "]"
