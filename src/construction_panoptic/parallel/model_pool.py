"""Mapping with a model: processes that each make it once and keep it, with results in order."""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import islice
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from construction_panoptic.config.base import Execution
from construction_panoptic.parallel.ray_cluster import joined_ray
from construction_panoptic.parallel.workers import (
    IN_FLIGHT,
    PATIENCE,
    Failure,
    hanging,
    in_order,
    pool_context,
    start_worker,
)

Model = TypeVar("Model")
Item = TypeVar("Item")
Result = TypeVar("Result")

IMAGES_IN_BLOCK = 8  # an item for a process; at least a batch
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_RESTARTS = 3  # of an actor of Ray whose machine or process dies; its items are done again


def map_with_model(
    make: Callable[[], Model],
    function: Callable[[Model, Item], Result],
    items: Iterable[Item],
    *,
    execution: Execution,
    device: str,
) -> Iterator[Result]:
    """Apply a function to a model and each item.

    Args:
        make: makes the model, on its device; called once in each process that has an item.
        function: both are functions of modules, or partials of such, for other processes can load no others.
        items: taken as they are needed.
        execution: the processes, see `process_count`; with one, all is done here.
        device: what ``make`` puts the model on. With ``auto`` or ``cuda``, each process sees one GPU alone.

    Yields:
        The results, in the order of the items.

    Raises:
        Exception: what the functions raise.
        ParameterError: Ray is asked for and not installed.
        UserError: a process hangs.
    """
    if in_this_process(execution, device):
        model = make()
        yield from (function(model, item) for item in items)
        return
    packed = pickle.dumps((make, function))
    results = (
        _by_ray(packed, items, execution, device)
        if execution.engine == "ray"
        else _by_processes(packed, items, process_count(execution, device), _visible_gpus(device))
    )
    for result in results:
        if isinstance(result, Failure):
            raise result.error
        yield result


def process_count(execution: Execution, device: str) -> int:
    """The number of processes of this machine that hold a model: ``workers``, but no more than one a GPU.

    ``auto`` is one a GPU, and one in all on a CPU, whose cores a network shares out itself.
    """
    gpus = len(_visible_gpus(device))
    workers = max(gpus, 1) if execution.workers == "auto" else execution.workers
    if device.startswith("cuda:"):
        return 1
    return min(workers, gpus) if gpus else workers


def batches_in_block(batch_size: int) -> int:
    """The number of batches that make an item worth sending to another process."""
    return max(1, IMAGES_IN_BLOCK // batch_size)


def in_this_process(execution: Execution, device: str) -> bool:
    """Tell whether `map_with_model` needs no other process."""
    return execution.engine == "local" and process_count(execution, device) == 1


def _visible_gpus(device: str) -> list[str]:
    count = 0 if device == "cpu" else import_module("torch").cuda.device_count()
    return os.environ.get(_VISIBLE, ",".join(str(number) for number in range(count))).split(",")[:count]


def _by_processes(packed: bytes, items: Iterable[Any], count: int, gpus: list[str]) -> Iterator[Any]:
    context = pool_context()
    numbers: SimpleQueue[int] = context.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    threads = max(1, import_module("torch").get_num_threads() // count)
    with ProcessPoolExecutor(count, context, _start, (packed, numbers, gpus, threads)) as pool:
        yield from in_order(pool, _apply, items, count * IN_FLIGHT)


def _start(packed: bytes, numbers: "SimpleQueue[int]", gpus: list[str], threads: int) -> None:
    start_worker()
    if gpus:
        os.environ[_VISIBLE] = gpus[numbers.get()]
    import_module("torch").set_num_threads(threads)
    _held.append(_Holder(packed))


class _Holder:
    """A process's model; made when the first item is there, so that what goes wrong is told as for an item."""

    def __init__(self, packed: bytes) -> None:
        self._make, self._function = pickle.loads(packed)
        self._models: list[Any] = []

    def apply(self, item: Any) -> Any:
        try:
            if not self._models:
                self._models.append(self._make())
            return self._function(self._models[0], item)
        except Exception as error:
            return Failure(error)


_held: list[_Holder] = []  # one, in a process of a pool


def _apply(item: Any) -> Any:
    return _held[0].apply(item)


class _Actor:
    """Holds a model in a process of Ray; its replacement gets all that it needs with its first item."""

    def __init__(self) -> None:
        self._holders: list[_Holder] = []

    def apply(self, packed: list[Any], item: Any) -> Any:
        if not self._holders:
            self._holders.append(_Holder(import_module("ray").get(packed[0])))
        return self._holders[0].apply(item)


def _by_ray(packed: bytes, items: Iterable[Any], execution: Execution, device: str) -> Iterator[Any]:
    """By actors, which keep their models; what tasks of Ray load onto a GPU is gone with the task."""
    with joined_ray(execution.workers) as ray:
        resources = ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0)) if device != "cpu" else 0
        workers = execution.workers if execution.workers != "auto" else gpus or cores
        count = min(workers, gpus) if gpus else workers
        needs = {"num_gpus": 1} if gpus else {"num_cpus": max(1, cores // count)}
        kind = ray.remote(_Actor).options(**needs, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
        shared = ray.put(packed)
        actors = [kind.remote() for _ in range(count)]
        waiting: deque[Any] = deque()
        remaining = iter(items)
        number = 0
        try:
            while True:
                for item in islice(remaining, count * IN_FLIGHT - len(waiting)):
                    waiting.append(actors[number % count].apply.remote([shared], item))
                    number += 1
                if not waiting:
                    return
                yield ray.get(waiting.popleft(), timeout=PATIENCE)
        except ray.exceptions.GetTimeoutError:
            raise hanging() from None
        finally:
            for actor in actors:
                ray.kill(actor)
