"""Mapping functions over processes: results in order, and only a few items in flight, so that memory stays flat."""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, Self, TypeVar

from construction_panoptic.errors import UserError
from construction_panoptic.parallel.local import Failure, keep_freed_memory, one_core_processes, pool_context, run
from construction_panoptic.parallel.ray_cluster import RayExecutor, joined_ray

Item = TypeVar("Item")
Result = TypeVar("Result")
WorkerCount = int | Literal["auto"]
Engine = Literal["local", "ray"]

IN_FLIGHT = 2  # blocks a worker
PATIENCE = 900.0  # seconds for a block
_BLOCK = {"local": 8, "ray": 16}  # items that are sent at once


def worker_count(workers: WorkerCount) -> int:
    """Return the number of processes: ``auto`` is one a usable CPU core."""
    if workers != "auto":
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that functions are mapped over, each on one CPU core; for networks see `model_pool.map_on_devices`.

    They are started when they are first needed; with one local worker (``inline``), and until they run, all is done
    here. With ``engine`` ray they are tasks of a Ray cluster, whose machines must see the files under the same paths;
    see `ray_cluster.joined_ray`. Raises `ParameterError`: Ray is asked for and not installed.
    """

    def __init__(self, workers: WorkerCount = 1, engine: Engine = "local") -> None:
        self._end = ExitStack()
        self._block = _BLOCK[engine]
        self._starting: Future[ProcessPoolExecutor] | None = None
        self._ray: RayExecutor | None = None
        if engine == "ray":
            ray = self._end.enter_context(joined_ray(workers))
            self._ray = RayExecutor(ray)
            self.count = int(ray.cluster_resources().get("CPU", 1)) if workers == "auto" else workers
        else:
            self.count = worker_count(workers)
            if self.count > 1:
                pool_context()  # what the processes are forked from loads meanwhile
        self.inline = self._ray is None and self.count == 1
        keep_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to each item, taken as they are needed; the results are in the order of the items.

        The function is one of a module, or a partial of one, for other processes can load no other.

        Raises:
            Exception: what the function raises, at the place of its item.
            UserError: a process hangs.
        """
        if self.inline:
            yield from map(function, items)
            return
        packed = pickle.dumps(function)  # once: a taxonomy in it takes longer than the items
        blocks = blocks_of(items, self._block)
        if self._ray is not None:
            # No more tasks than workers: those of Ray start as soon as the cluster has a core for them.
            yield from in_order(self._ray, partial(run, self._ray.put(packed)), blocks, self.count)
            return
        if self._starting is None:
            self._starting = self._start()
        while not self._starting.done() and (block := next(blocks, None)) is not None:
            yield from map(function, block)
        if (block := next(blocks, None)) is not None:
            blocks = chain([block], blocks)
            yield from in_order(self._starting.result(), partial(run, packed), blocks, self.count * IN_FLIGHT)

    def _start(self) -> Future[ProcessPoolExecutor]:
        starter = ThreadPoolExecutor(1)
        starting = starter.submit(one_core_processes, self.count)
        starter.shutdown(wait=False)
        self._end.callback(starting.add_done_callback, _end_pool)  # at once, or when it has started in vain
        return starting


def _end_pool(started: Future[ProcessPoolExecutor]) -> None:
    if started.exception() is None:
        started.result().shutdown(wait=True, cancel_futures=True)


def in_order(
    executor: Executor, function: Callable[[Item], list[Any]], items: Iterable[Item], limit: int
) -> Iterator[Any]:
    """Call a function that gives lists, such as `local.run`, for each item, with at most ``limit`` calls in flight.

    Yields what is in the lists, in the order of the items; raises the error of a `Failure` at its place, and UserError
    where a process hangs.
    """
    waiting: deque[Future[list[Any]]] = deque()
    remaining = iter(items)
    try:
        while True:
            waiting.extend(executor.submit(function, item) for item in islice(remaining, limit - len(waiting)))
            if not waiting:
                return
            for result in _patient_result(executor, waiting.popleft()):
                if isinstance(result, Failure):
                    raise result.error
                yield result
    finally:
        for future in waiting:
            future.cancel()


def _patient_result(executor: Executor, future: Future[list[Any]]) -> list[Any]:
    try:
        return future.result(timeout=PATIENCE)
    except TimeoutError:
        for process in list(getattr(executor, "_processes", {}).values()):  # or they would be waited for
            process.kill()
        raise UserError(
            f"A process that works on images has given none for {PATIENCE / 60:.0f} minutes. See whether the disk of "
            "the images answers."
        ) from None


def blocks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Give the items in lists of ``size``, the last one shorter; taken as they are needed."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block
