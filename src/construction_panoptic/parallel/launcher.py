"""Training in several processes, one a device, seen from outside as a generator like any other.

The processes form a process group of `torch.distributed`. They are of this machine, or of a Ray cluster by Ray Train;
what they say to the process that started them is the same.
"""

import logging
import math
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from tqdm import tqdm

from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel.device import process_count
from construction_panoptic.parallel.ray_cluster import joined_ray
from construction_panoptic.signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)

Work = Callable[..., Iterator[Any]]
# Kind, rank, content: a "result", a "log" line, or how a process ended: "interrupted", or by one of the failures.
Message = tuple[str, int, Any]

_PATIENCE = timedelta(minutes=30)  # in which a process waits for the others: rank 0 may measure a validation alone
_BACKENDS = "cpu:gloo,cuda:nccl"
_FAILURES = ("user error", "death", "error")  # what explains most comes first
_RAY_PERIOD = 3.0  # seconds until a failure, or the driver's end, ends other processes; Ray Train looks every 2


def launch(
    work: Work,
    arguments: tuple[Any, ...],
    stop: StopRequest,
    engine: Literal["local", "ray"] = "local",
    devices: int | Literal["auto"] = 1,
    device: str = "auto",
) -> Iterator[Any]:
    """Run ``work(*arguments, stop=…)``, a generator function of a module, in processes that form a process group.

    ``work`` must end by `Interrupted` when its ``stop`` is set, whose signal is passed on to the processes. A lone
    process of this machine is this one. With Ray, its module and all files that it needs are on each machine under the
    same paths. ``devices`` is the number of processes, one a GPU where there are GPUs (on ``device`` cpu they are not
    used), else they share the cores; "auto": all GPUs, or one process.

    Yields:
        What ``work`` yields on rank 0; the others' is dropped.

    Raises:
        ParameterError: there are not so many devices, or Ray is not installed.
        UserError: a process raised one, or died, or Ray cannot run the processes.
        Interrupted: ``stop`` was set, and rank 0 has ended in order.
        RuntimeError: any other error of a process; the message has its traceback.
    """
    if engine == "ray":
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # the cluster may be busy
        with joined_ray(devices) as ray, _RayProcesses(work, arguments, ray, devices, device) as group:
            yield from _results(group, stop)
    elif (count := process_count(devices, device)) == 1:
        yield from work(*arguments, stop=stop)
    else:
        with _LocalProcesses(work, arguments, count) as group:
            yield from _results(group, stop)


def _results(group: "_LocalProcesses | _RayProcesses", stop: StopRequest) -> Iterator[Any]:
    told, failures, deadline = False, list[Message](), math.inf
    while group.running() and time.monotonic() < deadline:
        if stop.number is not None and not told:
            told = True
            group.pass_on(stop.number)
        for kind, rank, content in group.messages(timeout=0.2):
            if kind == "result":
                yield content
            elif kind == "log":
                logging.getLogger(content[0]).log(*content[1:])
            elif kind == "interrupted" and rank == 0:
                raise Interrupted(*content)
            elif kind in _FAILURES:
                failures.append((kind, rank, content))
                deadline = min(deadline, time.monotonic() + group.last_words)
    if failures:
        stop.check("a process of the training ended before the batch under way could be saved.")
        raise _explanation(failures, group.count)


def _explanation(failures: list[Message], count: int) -> Exception:
    """The failure that explains most, which need not be the first that was heard."""
    kind, rank, content = min(failures, key=lambda message: _FAILURES.index(message[0]))
    process = f"Process {rank + 1} of {count} of the training"
    if kind == "user error":
        return UserError(content)
    if kind == "death":
        return UserError(f"{process} {content}. The last checkpoint is kept.")
    return RuntimeError(f"{process} failed: {content}")


def _take_part(
    rank: int,
    work: Work,
    arguments: bytes,
    join: Callable[[], None],
    post: Callable[[bytes], None],
    receive: Callable[[], int],
) -> bool:
    """Join the group and do the work as a process of it; False if that failed.

    Posts log lines, how it ended if not in order, and its results if it is rank 0. ``receive`` waits for a signal that
    the parent passes on.
    """
    lock, stop = threading.Lock(), StopRequest()

    def send(kind: str, content: Any) -> None:
        with lock:
            post(pickle.dumps((kind, content)))

    def listen() -> None:
        while True:
            try:
                stop.number = signal.Signals(receive())
            except Exception:  # without a parent there is nothing left to do
                os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    own_logger = logging.getLogger("construction_panoptic")
    own_logger.addHandler(_Forward(send))
    own_logger.setLevel(logging.WARNING if rank else logging.INFO)
    tqdm.set_lock(threading.RLock())  # its own lock between processes would be left behind
    try:
        join()
        for result in work(*pickle.loads(arguments), stop=stop):
            if rank == 0:
                send("result", result)
        dist.barrier()
    except Interrupted as interruption:
        send("interrupted", (interruption.number, str(interruption)))
    except UserError as error:
        send("user error", str(error))
        return False
    except Exception:
        send("error", traceback.format_exc())
        return False
    return True


class _Forward(logging.Handler):
    """Sends log lines to the parent, which knows where they go."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send("log", (record.name, record.levelno, record.getMessage()))


class _LocalProcesses:
    """Processes of this machine; process i uses CUDA device i where there is CUDA. At the block's end they are gone."""

    last_words = 3.0  # seconds after the first failure in which those of the others are heard

    def __init__(self, work: Work, arguments: tuple[Any, ...], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.count = count
        self._folder = tempfile.TemporaryDirectory(prefix="rendezvous_")
        self._pipes: dict[int, Connection] = {}
        self._processes: list[SpawnProcess] = []
        meeting, packed = Path(self._folder.name, "group"), pickle.dumps(arguments)
        for rank in range(count):
            self._pipes[rank], theirs = context.Pipe()
            process = context.Process(target=_local_process, args=(rank, count, meeting, work, packed, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def running(self) -> bool:
        """Tell whether messages can come."""
        return bool(self._pipes)

    def pass_on(self, number: signal.Signals) -> None:
        for pipe in self._pipes.values():
            with suppress(OSError):  # it has ended; its last message says how
                pipe.send(int(number))

    def messages(self, timeout: float) -> Iterator[Message]:
        """Give what has come in, after some seconds at most; the deaths of processes among it."""
        ready = wait(list(self._pipes.values()), timeout)
        for rank, pipe in list(self._pipes.items()):
            if pipe not in ready:
                continue
            try:
                kind, content = pickle.loads(pipe.recv_bytes())
                yield kind, rank, content
            except (EOFError, OSError):
                self._pipes.pop(rank).close()
                self._processes[rank].join()
                status = self._processes[rank].exitcode or 0
                if status > 0:
                    yield "error", rank, f"exit status {status}"
                elif status < 0:
                    name = signal.Signals(-status).name
                    yield "death", rank, f"was killed ({name}; the system does so when memory runs out)"


def _local_process(rank: int, count: int, meeting: Path, work: Work, arguments: bytes, pipe: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides

    def join() -> None:
        backend = "gloo"
        if torch.cuda.is_available():
            backend = _BACKENDS
            torch.cuda.set_device(rank % torch.cuda.device_count())
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
        dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=count, timeout=_PATIENCE)

    _take_part(rank, work, arguments, join, pipe.send_bytes, pipe.recv)
    # Without the interpreter's end, in which threads of the process group can wait for processes that have died.
    os._exit(0)


class _RayProcesses:
    """Processes of a Ray cluster by Ray Train, one a GPU where the cluster has GPUs, else one a core."""

    last_words = 60.0  # seconds in which Ray Train ends them all

    def __init__(
        self, work: Work, arguments: tuple[Any, ...], ray: Any, devices: int | Literal["auto"], device: str
    ) -> None:
        resources = ray.cluster_resources()
        kind = "CPU" if device == "cpu" or not resources.get("GPU") else "GPU"
        self.count = devices if devices != "auto" else int(resources["GPU"]) if kind == "GPU" else 1
        if self.count > resources.get(kind, 0):
            has = f"{int(resources.get(kind, 0))} {kind}s"
            raise ParameterError(f"devices: {self.count} are asked for, but the Ray cluster has {has}; set auto")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._inbox = Queue(maxsize=1, actor_options=options)  # one checkpoint may wait, not many
        self._signals = Queue(actor_options=options)
        self._explained: set[int] = set()
        # Ray Train keeps nothing of ours there.
        self._folder = tempfile.TemporaryDirectory(prefix="ray_train_", ignore_cleanup_errors=True)
        self._error: BaseException | None = None
        once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
        backend, patience = _BACKENDS if kind == "GPU" else "gloo", int(_PATIENCE.total_seconds())
        packed, threads = pickle.dumps(arguments), torch.get_num_threads()
        trainer = TorchTrainer(
            partial(_ray_process, work, packed, self._inbox, self._signals, threads, Path.cwd()),
            torch_config=TorchConfig(backend=backend, timeout_s=patience),
            scaling_config=ScalingConfig(num_workers=self.count, use_gpu=kind == "GPU"),
            run_config=RunConfig(name="training", storage_path=self._folder.name, failure_config=once),
        )
        self._fitting = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._fitting.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # what ends a thread is seen by nobody otherwise
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what does not end by itself: without their queues, processes have nobody to work for."""
        deadline = time.monotonic() + _RAY_PERIOD
        while self.running() and time.monotonic() < deadline:
            list(self.messages(timeout=0.2))
        for queue in (self._inbox, self._signals):
            queue.shutdown(force=True)
        self._fitting.join(timeout=self.last_words)
        self._folder.cleanup()

    def running(self) -> bool:
        return self._fitting.is_alive() or self._error is not None or not self._inbox.empty()

    def pass_on(self, number: signal.Signals) -> None:
        for _ in range(self.count):
            self._signals.put(int(number))

    def messages(self, timeout: float) -> Iterator[Message]:
        from ray.util.queue import Empty

        over = not self._fitting.is_alive()
        try:
            rank, packed = self._inbox.get(timeout=timeout)
        except Empty:
            if over and self._error is not None:
                error, self._error = self._error, None
                yield from self._deaths(error)
            return
        kind, content = pickle.loads(packed)
        if kind in _FAILURES:
            self._explained.add(rank)
        yield kind, rank, content

    def _deaths(self, error: BaseException) -> Iterator[Message]:
        """What Ray alone knows of the run's end."""
        failures = getattr(error, "worker_failures", None)
        if failures is None:
            yield "user error", 0, f"Ray could not run the training: {error}"
            return
        for rank, failure in failures.items():
            if rank not in self._explained:
                logger.error("%s", failure)
                yield "death", rank, "has died, or its machine (processes are killed when memory runs out)"


def _ray_process(work: Work, arguments: bytes, inbox: Any, signals: Any, threads: int, folder: Path) -> None:
    from ray.train import get_context

    context = get_context()
    rank: int = context.get_world_rank()

    def join() -> None:
        try:
            os.chdir(folder)
        except OSError as error:
            name = os.uname().nodename
            raise UserError(f"{name} has no {folder}: machines of a Ray cluster need the same files.") from error
        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, threads // context.get_local_world_size()))

    if not _take_part(rank, work, arguments, join, lambda message: inbox.put((rank, message)), signals.get):
        time.sleep(_RAY_PERIOD)
        raise RuntimeError("makes Ray Train end the other processes; the driver has heard why")
