"""Training in several processes of one machine, one a device, seen from outside as a generator like any other."""

import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from construction_panoptic.errors import UserError
from construction_panoptic.interruption import Interrupted, StopRequest

Work = Callable[..., Iterator[Any]]

PATIENCE = timedelta(minutes=30)
"""Longest time that a process waits for the others: the first one measures a validation alone."""
_LAST_WORDS = 3.0  # seconds in which those that fail together are heard
_GO_ON = "Go on with the same command and --only-missing-outputs."


def in_processes(work: Work, arguments: tuple[Any, ...], count: int, stop: StopRequest) -> Iterator[Any]:
    """Run a generator function in several processes that form a process group of `torch.distributed` (gloo, nccl).

    Args:
        work: called as ``work(*arguments, stop=…)`` in each process; it stands in a module. With one process, in
            this one. It must end by `Interrupted` when its ``stop`` is set.
        arguments: what pickle can take.
        count: number of processes; process i uses CUDA device i where there is CUDA.
        stop: its signal is passed on to the processes.

    Yields:
        What ``work`` yields in the first process; the others' is dropped.

    Raises:
        UserError: a process raised one, or died.
        Interrupted: ``stop`` was set, and the first process has ended in order.
        RuntimeError: any other error of a process; the message has its traceback.
    """
    if count == 1:
        yield from work(*arguments, stop=stop)
        return
    with tempfile.TemporaryDirectory(prefix="rendezvous_") as folder:
        team = _Team(work, pickle.dumps(arguments), count, Path(folder))
        try:
            yield from team.results(stop)
        finally:
            team.end()


class _Team:
    """The processes, seen from their parent."""

    def __init__(self, work: Work, arguments: bytes, count: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[int, Connection] = {}
        self._processes: list[SpawnProcess] = []
        self._told = False
        for rank in range(count):
            self._pipes[rank], theirs = context.Pipe()
            process = context.Process(target=_run, args=(rank, count, folder / "group", work, arguments, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)

    def results(self, stop: StopRequest) -> Iterator[Any]:
        """Give what the first process yields until all have ended."""
        while self._pipes:
            self._pass_on(stop)
            for kind, rank, content in self._messages(timeout=0.2):
                if kind == "result":
                    yield content
                elif kind == "log":
                    logging.getLogger(content[0]).log(*content[1:])
                elif kind == "interrupted" and rank == 0:
                    raise Interrupted(*content)
                elif kind in {"user error", "error", "death"}:
                    heard = [(kind, rank, content), *self._last_words()]
                    yield from (content for kind, _, content in heard if kind == "result")
                    stop.check(f"a process of the training ended before the batch under way could be saved. {_GO_ON}")
                    raise self._error([item for item in heard if item[0] in {"user error", "error", "death"}])

    def end(self) -> None:
        """Kill the processes that still run."""
        for process in self._processes:
            process.kill()
            process.join()

    def _pass_on(self, stop: StopRequest) -> None:
        if stop.number is not None and not self._told:
            self._told = True
            for pipe in self._pipes.values():
                try:
                    pipe.send(int(stop.number))
                except OSError:
                    continue  # it has ended; its last message says how

    def _messages(self, timeout: float) -> Iterator[tuple[str, int, Any]]:
        """What has come in (kind, process, content), the ends of processes among it."""
        ready = wait(list(self._pipes.values()), timeout)
        for rank, pipe in list(self._pipes.items()):
            if pipe not in ready:
                continue
            try:
                kind, content = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                self._pipes.pop(rank).close()
                self._processes[rank].join()
                if self._processes[rank].exitcode:
                    yield "death", rank, self._processes[rank].exitcode
                continue
            yield kind, rank, content

    def _last_words(self) -> list[tuple[str, int, Any]]:
        """What the other processes say once one has failed: it need not be the first that was heard."""
        heard: list[tuple[str, int, Any]] = []
        deadline = time.monotonic() + _LAST_WORDS
        while self._pipes and time.monotonic() < deadline:
            heard += self._messages(timeout=0.1)
        return heard

    def _error(self, failures: list[tuple[str, int, Any]]) -> Exception:
        """The failure that explains most: one meant for people, a process killed, else the first."""
        for kind, _, content in failures:
            if kind == "user error":
                return UserError(content)
        for kind, rank, content in failures:
            if kind == "death" and content < 0:
                name = signal.Signals(-content).name
                return UserError(
                    f"Process {rank + 1} of {len(self._processes)} of the training was killed ({name}; the system does "
                    f"so when memory runs out). The last checkpoint is kept. {_GO_ON}"
                )
        kind, rank, content = failures[0]
        what = content if kind == "error" else f"exit status {content}"
        return RuntimeError(f"Process {rank + 1} of {len(self._processes)} of the training failed: {what}")


class _Forward(logging.Handler):
    """Sends log lines to the parent, which knows where they go."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        self._send("log", (record.name, record.levelno, record.getMessage()))


def _run(rank: int, count: int, meeting: Path, work: Work, arguments: bytes, pipe: Connection) -> None:
    """What a process does."""
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with lock:
            pipe.send_bytes(pickle.dumps((kind, content)))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    logging.getLogger("construction_panoptic").addHandler(_Forward(send))
    logging.getLogger("construction_panoptic").setLevel(logging.WARNING if rank else logging.INFO)
    tqdm.set_lock(threading.RLock())  # its own lock between processes would be left behind
    stop = StopRequest()
    threading.Thread(target=_listen, args=(pipe, stop), daemon=True).start()
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=count, timeout=PATIENCE)
        for result in work(*pickle.loads(arguments), stop=stop):
            if rank == 0:
                send("result", result)
        dist.barrier()
    except Interrupted as interruption:
        send("interrupted", (interruption.number, str(interruption)))
    except UserError as error:
        send("user error", str(error))
    except Exception:
        send("error", traceback.format_exc())
    # Without the interpreter's end, in which threads of the process group can wait for processes that have died.
    os._exit(0)


def _listen(pipe: Connection, stop: StopRequest) -> None:
    """Wait for a signal that the parent passes on; without a parent there is nothing left to do."""
    while True:
        try:
            stop.number = signal.Signals(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)
