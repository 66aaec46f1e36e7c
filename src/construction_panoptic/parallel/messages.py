"""What the processes of a training say to the one that started them, whatever runs them."""

import logging
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from tqdm import tqdm

from construction_panoptic.errors import UserError
from construction_panoptic.signals import Interrupted, StopRequest

Work = Callable[..., Iterator[Any]]
Send = Callable[[str, Any], None]
Message = tuple[str, int, Any]
"""Kind, process, content: a ``result``, a ``log`` line, or how a process ended: ``interrupted``, by a ``user error``,
an ``error``, or its ``death`` (an exit status, or a text)."""

PATIENCE = timedelta(minutes=30)
"""Longest time that a process waits for the others: the first one measures a validation alone."""
BACKENDS = "cpu:gloo,cuda:nccl"
_FAILURES = {"user error", "error", "death"}


class Team(Protocol):
    """Processes, seen from the one that started them.

    Attributes:
        count: number of processes.
        last_words: seconds in which those that fail together are heard.
    """

    count: int
    last_words: float

    def running(self) -> bool:
        """Tell whether messages can come."""

    def messages(self, timeout: float) -> Iterator[Message]:
        """Give what has come in, after some seconds at most; the deaths of processes among it."""

    def pass_on(self, number: signal.Signals) -> None:
        """Let all processes know of a signal."""


def results(team: Team, stop: StopRequest) -> Iterator[Any]:
    """Give what the first process yields until all have ended.

    Raises:
        UserError: a process raised one, or died.
        Interrupted: ``stop`` was set, and the first process has ended in order.
        RuntimeError: any other error of a process; the message has its traceback.
    """
    told = False
    while team.running():
        if stop.number is not None and not told:
            told = True
            team.pass_on(stop.number)
        for message in team.messages(timeout=0.2):
            kind, rank, content = message
            if kind == "result":
                yield content
            elif kind == "log":
                logging.getLogger(content[0]).log(*content[1:])
            elif kind == "interrupted" and rank == 0:
                raise Interrupted(*content)
            elif kind in _FAILURES:
                heard = [message, *_last_words(team)]
                yield from (content for kind, _, content in heard if kind == "result")
                stop.check("a process of the training ended before the batch under way could be saved.")
                raise _explanation([message for message in heard if message[0] in _FAILURES], team.count)


def _last_words(team: Team) -> list[Message]:
    """What the other processes say once one has failed: it need not be the first that was heard."""
    heard: list[Message] = []
    deadline = time.monotonic() + team.last_words
    while team.running() and time.monotonic() < deadline:
        heard += team.messages(timeout=0.1)
    return heard


def _explanation(failures: list[Message], count: int) -> Exception:
    """The failure that explains most: one meant for people, a process that died, else the first."""
    for kind, _, content in failures:
        if kind == "user error":
            return UserError(content)
    for kind, rank, content in failures:
        if kind == "death" and isinstance(content, str):
            return UserError(f"Process {rank + 1} of {count} of the training {content}. The last checkpoint is kept.")
    kind, rank, content = failures[0]
    what = content if kind == "error" else f"exit status {content}"
    return RuntimeError(f"Process {rank + 1} of {count} of the training failed: {what}")


def take_part(rank: int, work: Work, arguments: bytes, send: Send, stop: StopRequest) -> None:
    """Do the work as a process of the group, and send its log lines; and its results, if it is the first.

    Args:
        rank: number of the process.
        work: called as ``work(*arguments, stop=stop)``.
        arguments: pickled.
        send: takes kind and content of a message.
        stop: see `processes.in_processes`.
    """
    logging.getLogger("construction_panoptic").addHandler(_Forward(send))
    logging.getLogger("construction_panoptic").setLevel(logging.WARNING if rank else logging.INFO)
    tqdm.set_lock(threading.RLock())  # its own lock between processes would be left behind
    for result in work(*pickle.loads(arguments), stop=stop):
        if rank == 0:
            send("result", result)
    dist.barrier()


@contextmanager
def outcome(send: Send) -> Iterator[None]:
    """Send how the block ended, if not in order."""
    try:
        yield
    except Interrupted as interruption:
        send("interrupted", (interruption.number, str(interruption)))
    except UserError as error:
        send("user error", str(error))
    except Exception:
        send("error", traceback.format_exc())


class _Forward(logging.Handler):
    """Sends log lines to the parent, which knows where they go."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        self._send("log", (record.name, record.levelno, record.getMessage()))
