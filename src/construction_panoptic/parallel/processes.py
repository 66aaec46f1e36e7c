"""Training in several processes of one machine, one a device, seen from outside as a generator like any other."""

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from construction_panoptic.parallel.messages import BACKENDS, PATIENCE, Message, Work, outcome, results, take_part
from construction_panoptic.signals import StopRequest


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
        team = _Processes(work, pickle.dumps(arguments), count, Path(folder))
        try:
            yield from results(team, stop)
        finally:
            team.end()


class _Processes:
    """See `messages.Team`."""

    last_words = 3.0

    def __init__(self, work: Work, arguments: bytes, count: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.count = count
        self._pipes: dict[int, Connection] = {}
        self._processes: list[SpawnProcess] = []
        for rank in range(count):
            self._pipes[rank], theirs = context.Pipe()
            process = context.Process(target=_run, args=(rank, count, folder / "group", work, arguments, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)

    def running(self) -> bool:
        return bool(self._pipes)

    def end(self) -> None:
        """Kill the processes that still run."""
        for process in self._processes:
            process.kill()
            process.join()

    def pass_on(self, number: signal.Signals) -> None:
        for pipe in self._pipes.values():
            try:
                pipe.send(int(number))
            except OSError:
                continue  # it has ended; its last message says how

    def messages(self, timeout: float) -> Iterator[Message]:
        ready = wait(list(self._pipes.values()), timeout)
        for rank, pipe in list(self._pipes.items()):
            if pipe not in ready:
                continue
            try:
                kind, content = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                self._pipes.pop(rank).close()
                self._processes[rank].join()
                if status := self._processes[rank].exitcode:
                    yield "death", rank, status if status > 0 else _killed(-status)
                continue
            yield kind, rank, content


def _killed(number: int) -> str:
    return f"was killed ({signal.Signals(number).name}; the system does so when memory runs out)"


def _run(rank: int, count: int, meeting: Path, work: Work, arguments: bytes, pipe: Connection) -> None:
    """What a process does."""
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with lock:
            pipe.send_bytes(pickle.dumps((kind, content)))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    stop = StopRequest()
    threading.Thread(target=_listen, args=(pipe, stop), daemon=True).start()
    with outcome(send):
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
        backend = BACKENDS if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=count, timeout=PATIENCE)
        take_part(rank, work, arguments, send, stop)
    # Without the interpreter's end, in which threads of the process group can wait for processes that have died.
    os._exit(0)


def _listen(pipe: Connection, stop: StopRequest) -> None:
    """Wait for a signal that the parent passes on; without a parent there is nothing left to do."""
    while True:
        try:
            stop.number = signal.Signals(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)
