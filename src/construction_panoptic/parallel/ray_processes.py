"""Training in processes of a Ray cluster, one a device, by Ray Train; the twin of `processes`."""

import logging
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel.messages import BACKENDS, PATIENCE, Message, Work, outcome, results, take_part
from construction_panoptic.parallel.ray_cluster import joined_ray
from construction_panoptic.signals import StopRequest

logger = logging.getLogger(__name__)

_LAST_WORDS = 3.0  # seconds until a failure, or the driver's end, ends other processes; Ray Train looks every 2


def in_ray(
    work: Work, arguments: tuple[Any, ...], devices: int | Literal["auto"], device: str, stop: StopRequest
) -> Iterator[Any]:
    """Run a generator function in processes of a Ray cluster, as `processes.in_processes` does on one machine.

    Args:
        work: see `in_processes`. Its module, and all files that it needs, are there on each machine under the same
            paths.
        arguments: see `in_processes`.
        devices: number of processes, one a GPU where the cluster has GPUs, else one a core; "auto": all GPUs, or one.
        device: see `device.resolve_device`; on ``cpu`` GPUs are not used.
        stop: see `in_processes`.

    Yields:
        What ``work`` yields in the first process.

    Raises:
        ParameterError: Ray is not installed, or the cluster has not so many devices.
        UserError, Interrupted, RuntimeError: see `in_processes`; and Ray cannot run the processes.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # the cluster may be busy
    with joined_ray(devices) as ray:
        resources = ray.cluster_resources()
        kind = "CPU" if device == "cpu" or not resources.get("GPU") else "GPU"
        count = devices if devices != "auto" else int(resources["GPU"]) if kind == "GPU" else 1
        if count > resources.get(kind, 0):
            has = f"{int(resources.get(kind, 0))} {kind}s"
            raise ParameterError(f"devices: {count} are asked for, but the Ray cluster has {has}; set auto")
        node = ray.get_runtime_context().get_node_id()
        with _RayProcesses(work, pickle.dumps(arguments), count, node, gpu=kind == "GPU") as team:
            yield from results(team, stop)


class _RayProcesses:
    """See `messages.Team`."""

    last_words = 60.0  # until Ray Train has ended them all

    def __init__(self, work: Work, arguments: bytes, count: int, node: str, *, gpu: bool) -> None:
        train, ray_queue = import_module("ray.train.torch"), import_module("ray.util.queue")
        self.count = count
        self._end = ExitStack()
        self._empty = ray_queue.Empty
        here = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(node, soft=False)
        # One checkpoint may wait, not many.
        self._inbox = ray_queue.Queue(maxsize=1, actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._signals = ray_queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._explained: set[int] = set()
        # Ray Train keeps nothing of ours there.
        folder = self._end.enter_context(tempfile.TemporaryDirectory(prefix="ray_train_", ignore_cleanup_errors=True))
        threads = torch.get_num_threads()
        self._error: BaseException | None = None
        api = import_module("ray.train")
        trainer = train.TorchTrainer(
            partial(_work, work, arguments, self._inbox, self._signals, threads, Path.cwd()),
            torch_config=train.TorchConfig(
                backend=BACKENDS if gpu else "gloo", timeout_s=int(PATIENCE.total_seconds())
            ),
            scaling_config=api.ScalingConfig(num_workers=count, use_gpu=gpu),
            run_config=api.RunConfig(
                name="training",
                storage_path=folder,
                failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
        )
        self._fitting = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._fitting.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # what ends a thread is seen by nobody otherwise
            self._error = error

    def __enter__(self) -> "_RayProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        """End what does not end by itself: without their queues, processes have nobody to work for."""
        deadline = time.monotonic() + _LAST_WORDS
        while self.running() and time.monotonic() < deadline:
            list(self.messages(timeout=0.2))
        for queue in (self._inbox, self._signals):
            queue.shutdown(force=True)
        self._fitting.join(timeout=self.last_words)
        self._end.close()

    def running(self) -> bool:
        return self._fitting.is_alive() or self._error is not None or not self._inbox.empty()

    def pass_on(self, number: signal.Signals) -> None:
        for _ in range(self.count):
            self._signals.put(int(number))

    def messages(self, timeout: float) -> Iterator[Message]:
        over = not self._fitting.is_alive()
        try:
            rank, kind, content = self._inbox.get(timeout=timeout)
        except self._empty:
            if over and self._error is not None:
                error, self._error = self._error, None
                yield from self._deaths(error)
            return
        if kind in {"user error", "error"}:
            self._explained.add(rank)
        yield kind, rank, pickle.loads(content)

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


class _FailedError(Exception):
    """Makes Ray Train end the other processes; the driver has heard why."""


def _work(work: Work, arguments: bytes, inbox: Any, signals: Any, threads: int, folder: Path) -> None:
    """What a process does."""
    context = import_module("ray.train").get_context()
    rank: int = context.get_world_rank()
    lock = threading.Lock()
    failed = False

    def send(kind: str, content: Any) -> None:
        nonlocal failed
        failed = failed or kind in {"user error", "error"}
        with lock:
            inbox.put((rank, kind, pickle.dumps(content)))

    stop = StopRequest()
    threading.Thread(target=_listen, args=(signals, stop), daemon=True).start()
    with outcome(send):
        _enter(folder)
        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, threads // context.get_local_world_size()))
        take_part(rank, work, arguments, send, stop)
    if failed:
        time.sleep(_LAST_WORDS)
        raise _FailedError


def _enter(folder: Path) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"{os.uname().nodename} has no {folder}: machines of a Ray cluster need the same files."
        ) from error


def _listen(signals: Any, stop: StopRequest) -> None:
    """Wait for a signal that the driver passes on; without a driver there is nothing left to do."""
    while True:
        try:
            stop.number = signal.Signals(signals.get())
        except Exception:
            os._exit(1)
