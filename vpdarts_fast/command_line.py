"""What all command lines share: output that may fail, errors in one line, exit statuses."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from vpdarts_fast.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Callable[..., int]:
    """Decorates the `main` of a command line: 2 after an error, 130 after Ctrl-C, never a traceback."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        with forgiving_output():
            try:
                return main(arguments)
            except (UserError, OSError) as error:
                print(f"error: {described(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                return 130

    return run


def described(error: Exception) -> str:
    """What an error says to people: without its type, and with the file where it is about one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return str(error)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Inside, nothing that is printed can raise: not into a closed or full file, nor in any encoding.

    What cannot be encoded is printed as an escape sequence. After the first failure of the standard
    output there is one warning, and what else would go there is dropped.
    """
    _open_standard_files()
    errors = _Forgiving(sys.stderr)
    output = _Forgiving(sys.stdout, lambda reason: warn(f"cannot write the standard output: {reason}; "
                                                         "going on without it"))  # fmt: skip
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            yield
        finally:
            output.flush()
            errors.flush()


def warn(text: str) -> None:
    """Prints a warning to the standard error output."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


FILE_WIDTH = 130
"""Columns of a table that goes into a file."""


def table_console(width: int = FILE_WIDTH) -> Console:
    """Makes a console for tables: as wide as the terminal, or of a width where the output is a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


@contextlib.contextmanager
def progress_bar(description: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows a bar while something is done, on a terminal; elsewhere it is a line.

    Args:
        description: what is done.
        total: of how much.
        quiet: show nothing.

    Yields:
        What is to be called with how much is done so far.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if quiet or not sys.stdout.isatty():
        if not quiet:
            print(f"{description}: {total:,}", flush=True)
        yield lambda done: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


def _open_standard_files() -> None:
    """Fills descriptors 0 to 2: a file of the run that got one of them would be written to by accident."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free


class _Forgiving(io.TextIOBase):
    """A stream that a failure silences."""

    def __init__(
        self, stream: TextIO | None, on_failure: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._stream, self._on_failure = stream, on_failure
        self._silent = False

    def write(self, text: str) -> int:
        self._attempt(lambda stream: self._write(stream, text))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:  # else there is nothing to write out
            self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        if self._silent or self._stream is None or self._stream.closed:
            return False
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _attempt(self, act: Callable[[TextIO], None]) -> None:
        if self._silent:
            return
        try:
            if self._stream is None:
                raise OSError("it is closed")
            act(self._stream)
        except (OSError, ValueError) as error:  # a closed file raises ValueError
            self._silent = True
            self._drain()
            self._on_failure(str(getattr(error, "strerror", None) or error))

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def _drain(self) -> None:
        """What waits in the stream's buffer would fail again, at the latest at the end of the program."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = self.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


class StopRequest:
    """Makes SIGINT and SIGTERM end the program in order, while it is entered.

    Inside `deferred` the first one is a request to stop after the step, and a second one ends it at
    once; outside, where nothing needs to be saved, the first one does. A third one kills.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a signal has asked the program to stop."""
        return self.signal is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is a request to stop, and does not end the program by itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if again or not self._deferred:
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        with contextlib.suppress(RuntimeError):  # the signal came while something was being printed
            print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)


def stoppable(
    run: Callable[[list[str], StopRequest], object],
    arguments: Sequence[str] | None,
    interrupted: type[Exception],
) -> int:
    """Runs a command line that SIGINT and SIGTERM stop in order.

    Args:
        run: takes the arguments, and what says that it is asked to stop.
        arguments: None for those of the process.
        interrupted: what `run` raises once everything is kept.

    Returns:
        The exit status: 0, 2 after an error, 128 + signal after a signal.
    """
    with forgiving_output():
        stop = StopRequest()
        try:
            with stop:
                run(sys.argv[1:] if arguments is None else list(arguments), stop)
            return 0
        except (UserError, OSError) as error:
            print(f"error: {described(error)}", file=sys.stderr)
            return 2
        except interrupted:
            return 128 + (stop.signal or signal.SIGINT)
        except KeyboardInterrupt:
            print("stopped at once", file=sys.stderr)
            return 128 + (stop.signal or signal.SIGINT)
