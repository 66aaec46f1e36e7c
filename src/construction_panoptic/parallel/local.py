"""Processes of this machine: how they start, what they run, and how they end."""

import ctypes
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from typing import Any, cast

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

PRELOADED = ["construction_panoptic.parallel.preloaded"]
"""Modules that processes start with: of those added before the first one starts, none may load pandas or torch."""

_COMMAND_LINE = "kedro.framework.cli"  # slow to load; each new process runs the main module's imports again
# Of malloc.h: up to what size arrays come from the heap, and how much free memory at its end goes back to the system.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_ARRAY, _KEPT = 256 * 2**20, 512 * 2**20  # bytes


def pool_context() -> BaseContext:
    """Say how processes are started; what they are forked from begins to load meanwhile.

    They are not forks of this process, which can hang where it has threads, as with PyTorch. They are forked from a
    process without any, which loads modules once for all pools; where there is no fork, they are new.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *(name for name in [_COMMAND_LINE] if name in sys.modules)])
    forkserver.ensure_running()
    return context


def one_core_processes(count: int) -> ProcessPoolExecutor:
    """Start processes with one thread each, and wait for the first; those that have to load can take a second."""
    pool = ProcessPoolExecutor(count, pool_context(), _start)
    pool.submit(os.getpid).result()
    return pool


def network_processes(packed: bytes, count: int, gpus: Sequence[str]) -> ProcessPoolExecutor:
    """Start processes for one function, see `run_own`, each with one of ``gpus``, or with its part of the cores."""
    context = pool_context()
    names: SimpleQueue[str] = context.SimpleQueue()
    for name in gpus[:count]:
        names.put(name)
    threads = max(1, import_module("torch").get_num_threads() // count)
    return ProcessPoolExecutor(count, context, _start_network, (packed, names if gpus else None, threads))


def _start() -> None:
    import_module(PRELOADED[0])  # done, if this process is a fork
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _start_network(packed: bytes, gpus: "SimpleQueue[str] | None", threads: int) -> None:
    _start()
    if gpus is not None:
        os.environ[VISIBLE_GPUS] = gpus.get()
    import_module("torch").set_num_threads(threads)
    _own.append(packed)


def _end_with_parent() -> None:
    """A pool's process waits for work for ever when its parent was killed: its siblings hold the other end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Failure:
    """What an item led to, in place of a result: the results before it are still good."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def run(shipped: Any, items: Sequence[Any]) -> list[Any]:
    """Apply a function to items up to the first that fails; a `Failure` is then the last of the results.

    ``shipped`` is the pickled function, or the reference under which Ray has it; it is unpickled once a process, so
    that it can keep what it makes, such as a network.
    """
    results: list[Any] = []
    try:
        function = _function(shipped)
        for item in items:
            results.append(function(item))  # noqa: PERF401  # those before a failure count
    except Exception as error:
        results.append(Failure(error))
    return results


def run_own(items: Sequence[Any]) -> list[Any]:
    """`run` with the function that `network_processes` gave this process when it started."""
    return run(_own[0], items)


_own: list[bytes] = []


@lru_cache(maxsize=1)
def _function(shipped: Any) -> Callable[[Any], Any]:
    packed = shipped if isinstance(shipped, bytes) else import_module("ray").get(shipped)
    return cast("Callable[[Any], Any]", pickle.loads(packed))


def keep_freed_memory() -> None:
    """Let large arrays take memory that others have freed, in place of new pages, which the system has to clear first.

    It takes a third off the conversion of an image, a tenth off a training step on a CPU. Does nothing where the C
    library has no such setting. Each thread keeps memory of its own: it is not for a server of many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ARRAY)
        mallopt(_TRIM_THRESHOLD, _KEPT)
