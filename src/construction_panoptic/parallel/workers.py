"""Mapping over processes: results in order, and only a few items in flight, so that memory stays flat."""

import multiprocessing
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from importlib import import_module
from itertools import chain, islice
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from construction_panoptic.errors import UserError
from construction_panoptic.parallel.ray_pool import ITEMS_IN_BLOCK, RayPool
from construction_panoptic.parallel.reuse import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")
WorkerCount = int | Literal["auto"]
Engine = Literal["local", "ray"]

IN_FLIGHT = 2  # chunks a worker
PATIENCE = 900.0  # seconds for a chunk
_CHUNK = 8
_PRELOADED = "construction_panoptic.parallel.preloaded"
_COMMAND_LINE = "kedro.framework.cli"  # slow to load; each new process runs the main module's imports again


def worker_count(workers: WorkerCount) -> int:
    """Return the number of processes: ``auto`` is one a usable CPU core."""
    if workers != "auto":
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes, started when it is first needed; with one worker, and until they run, all is done here.

    The processes are not forks of this one, which can hang where it has threads, as with PyTorch. They are forked
    from a process without any, which loads our modules once for all pools; where there is no fork, they are new.

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
        self._pool: Future[ProcessPoolExecutor] | None = None
        self._starter = ThreadPoolExecutor(1)
        self._context = None if self._ray or self.count == 1 else pool_context()
        keep_freed_memory()

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
            self._pool.add_done_callback(_end_pool)  # at once, or when it has started in vain
            self._pool = None
        self._starter.shutdown(wait=False)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to each item.

        Args:
            function: a function of a module (or a partial of one), for other processes can load no other.
            items: taken as they are needed.

        Yields:
            The results, in the order of the items.

        Raises:
            Exception: what the function raises, at the place of its item.
        UserError: a process hangs.
        """
        if self.inline:
            yield from map(function, items)
            return
        size, mapping = (_CHUNK, self._map) if self._ray is None else (ITEMS_IN_BLOCK, self._ray.map)
        for results in mapping(partial(_apply, function), blocks_of(items, size)):
            for result in results:
                if isinstance(result, Failure):
                    raise result.error
                yield result

    def _map(self, function: Callable[[list[Item]], Result], blocks: Iterator[list[Item]]) -> Iterator[Result]:
        if self._pool is None:
            self._pool = self._starter.submit(_start_pool, self.count, self._context)
        packed = pickle.dumps(function)  # once: a taxonomy in it takes longer than the items
        while not self._pool.done() and (block := next(blocks, None)) is not None:
            yield function(block)
        if (block := next(blocks, None)) is not None:
            rest = chain([block], blocks)
            yield from in_order(self._pool.result(), partial(_call, packed), rest, self.count * IN_FLIGHT)


def in_order(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """Apply a function to items in the processes of a pool, with at most ``limit`` in flight, and give the results.

    Raises:
        UserError: a process hangs.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    try:
        while True:
            for item in islice(remaining, limit - len(waiting)):
                waiting.append(pool.submit(function, item))
            if not waiting:
                return
            yield waiting.popleft().result(timeout=PATIENCE)
    except TimeoutError:  # of the wait: those of an item come back as failures
        for process in list(pool._processes.values()):
            process.kill()
        raise hanging() from None
    finally:
        for future in waiting:
            future.cancel()


def hanging() -> UserError:
    """The error of a process that has given nothing for `PATIENCE`."""
    return UserError(
        f"A process that works on images has given none for {PATIENCE / 60:.0f} minutes. See whether the "
        "disk of the images answers."
    )


def blocks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Give the items in lists of ``size``, the last one shorter; taken as they are needed."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def _call(packed: bytes, block: list[Any]) -> Any:
    return _unpacked(packed)(block)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[list[Any]], Any]:
    return cast("Callable[[list[Any]], Any]", pickle.loads(packed))


class Failure:
    """What an item led to, in place of a result: the results before it are still good."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _apply(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result | Failure]:
    results: list[Result | Failure] = []
    for item in chunk:
        try:
            results.append(function(item))
        except Exception as error:
            results.append(Failure(error))
            break
    return results


def pool_context() -> BaseContext:
    """Say how processes are started; what they are forked from begins to load meanwhile."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED, *(name for name in [_COMMAND_LINE] if name in sys.modules)])
    forkserver.ensure_running()
    return context


def _start_pool(count: int, context: BaseContext | None) -> ProcessPoolExecutor:
    """Return a pool whose first process runs; processes that have to load can take a second."""
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=start_worker)
    pool.submit(os.getpid).result()
    return pool


def _end_pool(started: Future[ProcessPoolExecutor]) -> None:
    if started.exception() is None:
        started.result().shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Set up a new process of a pool."""
    import_module(_PRELOADED)  # done, if this process is a fork
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process waits for work for ever when its parent was killed: its siblings hold the other end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
