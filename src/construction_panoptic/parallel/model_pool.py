"""Mapping with a network: processes that each have it once and keep it, with results in order."""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from construction_panoptic.config.base import Execution
from construction_panoptic.parallel.local import VISIBLE_GPUS, network_processes, run, run_own
from construction_panoptic.parallel.ray_cluster import RayExecutor, joined_ray
from construction_panoptic.parallel.workers import IN_FLIGHT, blocks_of, in_order

Item = TypeVar("Item")
Result = TypeVar("Result")

IMAGES_IN_BLOCK = 8  # an item for a process; at least a batch


def map_on_devices(
    function: Callable[[Item], Result], items: Iterable[Item], *, execution: Execution, device: str
) -> Iterator[Result]:
    """Apply a function to each item; the results are in order, computed as they are asked for.

    Each process, see `model_count`, has one copy of the function for all its items, so that a network in it is moved
    to the device once; with ``auto`` or ``cuda``, each process sees one GPU alone. It is a function of a module, or a
    partial of one, for other processes can load no other.

    Raises:
        Exception: what the function raises.
        ParameterError: Ray is asked for and not installed.
        UserError: a process hangs.
    """
    if in_this_process(execution, device):
        yield from map(function, items)
        return
    packed, single = pickle.dumps(function), blocks_of(items, 1)
    if execution.engine == "local":
        count = model_count(execution, device)
        with network_processes(packed, count, _visible_gpus(device)) as pool:
            yield from in_order(pool, run_own, single, count * IN_FLIGHT)
        return
    with joined_ray(execution.workers) as ray:
        count, resources = _ray_resources(ray.cluster_resources(), execution, device)
        with RayExecutor(ray, actors=count, resources=resources) as actors:
            yield from in_order(actors, partial(run, actors.put(packed)), single, count * IN_FLIGHT)


def model_count(execution: Execution, device: str) -> int:
    """The number of processes of this machine that hold the model: ``workers``, but no more than one a GPU.

    ``auto`` is one a GPU, and one in all on a CPU, whose cores a network shares out itself.
    """
    gpus = len(_visible_gpus(device))
    workers = max(gpus, 1) if execution.workers == "auto" else execution.workers
    if device.startswith("cuda:"):
        return 1
    return min(workers, gpus) if gpus else workers


def in_this_process(execution: Execution, device: str) -> bool:
    """Tell whether `map_on_devices` needs no other process."""
    return execution.engine == "local" and model_count(execution, device) == 1


def batches_in_block(batch_size: int) -> int:
    """The number of batches that make an item worth sending to another process."""
    return max(1, IMAGES_IN_BLOCK // batch_size)


def _visible_gpus(device: str) -> list[str]:
    count = 0 if device == "cpu" else import_module("torch").cuda.device_count()
    return os.environ.get(VISIBLE_GPUS, ",".join(str(number) for number in range(count))).split(",")[:count]


def _ray_resources(cluster: dict[str, Any], execution: Execution, device: str) -> tuple[int, dict[str, int]]:
    """The number of actors, and what each needs."""
    cores, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0)) if device != "cpu" else 0
    workers = execution.workers if execution.workers != "auto" else gpus or cores
    count = min(workers, gpus) if gpus else workers
    return count, {"num_gpus": 1} if gpus else {"num_cpus": max(1, cores // count)}
