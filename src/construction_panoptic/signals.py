"""SIGTERM and Ctrl-C: work ends at a point from which it can go on, and the exit status says which signal it was."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop; no ``Exception``, so that code which puts up with errors lets it pass."""

    def __init__(self, number: signal.Signals, message: str = "") -> None:
        super().__init__(message or f"Stopped by {number.name}.")
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit status by convention: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.number


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None

    def is_set(self) -> bool:
        """Whether it was."""
        return self.number is not None

    def check(self, message: str) -> None:
        """Raise `Interrupted`, with a message that says what has been saved, if the process was asked to stop."""
        if self.number is not None:
            raise Interrupted(self.number, f"Stopped by {self.number.name}: {message}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into `Interrupted`, wherever the block is; only in the main thread."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    with signal_handlers(interrupt):
        yield


@contextmanager
def deferred_interruption() -> Iterator[StopRequest]:
    """Note SIGTERM and Ctrl-C for `StopRequest.check` instead of ending the block; a second Ctrl-C ends it at once."""
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.number == signal.SIGINT:
            raise Interrupted(signal.SIGINT)
        request.number = signal.Signals(number)

    with signal_handlers(note):
        yield request


@contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], None] | None = None) -> Iterator[None]:
    """Let ``handler`` take SIGTERM and Ctrl-C in the block, if one is given; the former handlers come back after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python leaves signals to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number, former in before.items():
            signal.signal(number, handler or former)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
