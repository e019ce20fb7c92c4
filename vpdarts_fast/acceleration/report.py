"""What `accelerate` says: what is fused, how much of it runs natively, what is left, and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One mixed operation, one cell of mixed operations, or one residual block.

    Attributes:
        name: of the module in the model.
        kind: what it is, in words.
        fused: it runs on `vpdarts_fast.ops`.
        remark: why not, or what of it still runs as it did.
        operations: how many candidate operations it has.
        native: how many of them run on kernels entirely, in training mode, where its parameters lie now.
    """

    name: str
    kind: str
    fused: bool
    remark: str = ""
    operations: int = 0
    native: int = 0

    @property
    def hints(self) -> tuple[str, ...]:
        """What helps, a sentence for each reason in the remark that has one."""
        return tuple(hint for reason, hint in HINTS if reason in self.remark)


@dataclass(frozen=True)
class AccelerationReport:
    """What `accelerate` has done; printing it lists every mixed operation.

    Attributes:
        entries: one for each mixed operation, cell or residual block that was found, in the model's order.
    """

    entries: tuple[Entry, ...]

    @property
    def fused(self) -> tuple[Entry, ...]:
        """The entries of modules that run on `vpdarts_fast.ops`."""
        return tuple(entry for entry in self.entries if entry.fused)

    @property
    def left(self) -> tuple[Entry, ...]:
        """The entries of modules that run as they did."""
        return tuple(entry for entry in self.entries if not entry.fused)

    @property
    def hints(self) -> tuple[str, ...]:
        """What helps where something runs as it did, each hint once."""
        if not self.entries:
            return (NOTHING_FOUND,)
        return tuple(dict.fromkeys(hint for entry in self.entries for hint in entry.hints))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{len(self.fused)} of {len(self.entries)} modules fused"
        operations = sum(entry.operations for entry in self.entries)
        if operations:
            native = sum(entry.native for entry in self.entries)
            yield f"{native} of {operations} operations run natively"
        width = max((len(entry.name) for entry in self.entries), default=0)
        for entry in self.entries:
            outcome = "fused" if entry.fused else "left "
            part = ""
            if entry.fused and entry.native < entry.operations:
                part = f", {entry.native} of {entry.operations} operations natively"
            remark = f": {entry.remark}" if entry.remark else ""
            yield f"  {entry.name:<{width}}  {outcome}  {entry.kind}{part}{remark}"
        yield from (f"hint: {hint}" for hint in self.hints)


NOTHING_FOUND = (
    "no mixed operation was found. It is a module with its candidate operations in one ModuleList or "
    "ModuleDict, or as its children, and a method of (x, weights) that returns their weighted sum"
)

HINTS = (
    (
        "unknown layers",
        "unknown layers: layers as modules (nn.ReLU) in place of functions are recognised; what "
        "docs/drop-in.md does not list loses nothing but its own speed",
    ),
    (
        "cannot be traced",
        "cannot be traced: an operation whose code does not ask for values or shapes is recognised",
    ),
    ("differs between training and evaluation", "differs between modes: drop-path belongs behind the sum"),
    (
        "draws random numbers",
        "draws random numbers: what is drawn belongs around the mixed operation",
    ),
    ("does not return", "only what is computed for the value that is returned is recognised"),
    (
        "changes its input",
        "changes its input: inplace=False in the first layer; what the others compute depends on it",
    ),
    (
        "is not the weighted sum of its operations",
        "not the weighted sum: what is added, scaled or dropped belongs around the mixed operation",
    ),
    (
        "changes the input of its operations",
        "changes the input of its operations: that belongs in front of the mixed operation",
    ),
    (
        "runs an operation",
        "runs an operation never or several times: it samples, and there is nothing to fuse",
    ),
    ("computes something else each time", "computes something else each time: there is nothing to fuse"),
    ("runs some operations of weight 0 and others not", "all operations of weight 0 may be skipped, or none"),
    (
        "does not run its operations on channels of its input",
        "operations get the input, or its first channels",
    ),
    (
        "writes to",
        "writes to itself: what is counted or stored belongs into a forward hook of the module; hooks go on",
    ),
    (
        "not that of its class",
        "a method of its own: a subclass in place of a method that is set on an instance is recognised; "
        "profilers set some, which can be taken off before",
    ),
    (
        "cannot be run",
        "cannot be run on its own: what it needs besides (x, weights) has to be there",
    ),
    ("sequences or volumes", "sequences or volumes: there are kernels for images only"),
    ("cannot be compared", "cannot be compared: values of another kind in it do not allow it"),
    ("cannot be copied", "cannot be copied: what copy.deepcopy refuses belongs out of the module"),
    ("call the model once", "call the model once: its first call makes what later ones use"),
    (
        "change the number of channels",
        "other numbers of channels or sizes: these belong into a layer before or behind the mixed operation",
    ),
    (
        "other numbers of channels",
        "other numbers of channels: those of a residual block are C, then twice C_out",
    ),
    ("into equal parts", "partial channels: their number and even sizes have to be divisible"),
    ("has no operation that is known", "no operation is known: docs/drop-in.md lists those that are"),
    ("operations of different strides", "different strides: all operations of an edge have the same"),
    ("different numbers of operations", "edges of a cell have the same number of operations"),
    ("has no edge", 'edges of a cell are named "i<-j", with one into every node but the first'),
    (
        "is not covered in either mode",
        "batch norms of a mixed operation track running statistics, all or none",
    ),
    (
        "without a kernel",
        'without a kernel: float32 on a CPU has one, or backend="pytorch" runs the same algebra in PyTorch',
    ),
    (
        "hooks in it",
        "hooks: those of the module itself cost nothing; only its own code calls those of its submodules, "
        "and of all modules",
    ),
    (
        "not compared",
        "not compared: this is done at the first call, when its parameters have values",
    ),
)
"""What is found in a remark, and what helps; for every reason there is
(tests/acceleration/test_accelerate_report.py)."""
