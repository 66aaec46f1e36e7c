"""Mapping over processes: results in order, and only a few items in flight, so that memory stays flat."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Literal, Self, TypeVar

from construction_panoptic.annotations.ray_pool import ITEMS_IN_BLOCK, RayPool

Item = TypeVar("Item")
Result = TypeVar("Result")
WorkerCount = int | Literal["auto"]
Engine = Literal["local", "ray"]

_CHUNK = 4
_CHUNKS_IN_FLIGHT = 2  # a worker


def worker_count(workers: WorkerCount) -> int:
    """Return the number of processes: ``auto`` is one a usable CPU core."""
    if workers != "auto":
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes, started when it is first needed; with one worker all runs in this process.

    The processes are new ones (``spawn``): forking a process with threads, as PyTorch has, can hang.

    Args:
        workers: processes, or "auto".
        engine: ``local``: processes of this machine; ``ray``: those of a Ray cluster, whose machines must see the
            files under the same paths. It is the one that RAY_ADDRESS names, else a local one for this pool.

    Raises:
        ParameterError: Ray is asked for and not installed.
    """

    def __init__(self, workers: WorkerCount = 1, engine: Engine = "local") -> None:
        self._ray = RayPool(workers) if engine == "ray" else None
        self.count = worker_count(workers) if self._ray is None else self._ray.count
        self._pool: ProcessPoolExecutor | None = None

    @property
    def inline(self) -> bool:
        """Whether all runs in this process."""
        return self._ray is None and self.count == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ray is not None:
            self._ray.shutdown()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to each item.

        Args:
            function: a function of a module (or a partial of one), for other processes can load no other.
            items: taken as they are needed.

        Yields:
            The results, in the order of the items.

        Raises:
            Exception: what the function raises, at the place of its item.
        """
        if self.inline:
            yield from map(function, items)
            return
        size, mapping = (_CHUNK, self._map) if self._ray is None else (ITEMS_IN_BLOCK, self._ray.map)
        for results in mapping(partial(_apply, function), _blocks(items, size)):
            for result in results:
                if isinstance(result, _Failure):
                    raise result.error
                yield result

    def _map(self, function: Callable[[list[Item]], Result], blocks: Iterator[list[Item]]) -> Iterator[Result]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker)
        waiting: deque[Future[Result]] = deque()
        try:
            while True:
                for block in islice(blocks, self.count * _CHUNKS_IN_FLIGHT - len(waiting)):
                    waiting.append(self._pool.submit(function, block))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


class _Failure:
    """What an item led to, in place of a result: the results before it are still good."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _apply(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result | _Failure]:
    results: list[Result | _Failure] = []
    for item in chunk:
        try:
            results.append(function(item))
        except Exception as error:
            results.append(_Failure(error))
            break
    return results


def _start_worker() -> None:
    # The processes are the parallelism; threads below them would only wait for each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process waits for work for ever when its parent was killed: its siblings hold the other end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
