"""Mapping by Ray Data, behind the interface of `parallel.Workers`: for more than one machine."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, Literal, TypeVar

from construction_panoptic.parallel.ray_cluster import joined_ray

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_IN_BLOCK = 16  # a task each; Ray Data takes about 0.02 s for a block
_BLOCKS_IN_WINDOW = 16  # a worker; Ray Data takes about 0.5 s for a window


class RayPool:
    """Runs functions in the workers of a Ray cluster.

    Args:
        workers: tasks at a time, each on a core; "auto": as many as the cluster has cores.

    Raises:
        ParameterError: Ray is not installed.
    """

    def __init__(self, workers: int | Literal["auto"]) -> None:
        self._membership = ExitStack()
        ray = self._membership.enter_context(joined_ray(workers))
        self._data = import_module("ray.data")
        self.count = int(ray.cluster_resources().get("CPU", 1)) if workers == "auto" else workers

    def map(self, function: Callable[[list[Item]], Result], blocks: Iterator[list[Item]]) -> Iterator[Result]:
        """Apply a function to lists of items.

        A data set of Ray Data is finite, and held as a whole by the process that makes it: there is one after the
        other, of as many lists as keep the workers busy for some seconds.

        Args:
            function: a function of a module (or a partial of one); what it raises ends all.
            blocks: taken as they are needed.

        Yields:
            The results, in order.
        """
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it has none, and says so
        self._data.DataContext.get_current().enable_progress_bars = False
        while window := list(islice(blocks, self.count * _BLOCKS_IN_WINDOW)):
            # Pickled here, for as columns of a table many things would come back as something else.
            rows = [{"items": pickle.dumps(block)} for block in window]
            data = self._data.from_items(rows, override_num_blocks=len(rows))
            data.context.execution_options.preserve_order = True
            tasks = self._data.TaskPoolStrategy(min(self.count, len(rows)))
            for row in data.map(partial(_call, function), num_cpus=1, compute=tasks).iter_rows():
                yield pickle.loads(row["results"])

    def shutdown(self) -> None:
        """Leave the cluster, if this pool joined or started it."""
        self._membership.close()


def _call(function: Callable[[list[Any]], Any], row: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # a task has one core; Ray sees to the threads of OpenMP itself
    return {"results": pickle.dumps(function(pickle.loads(row["items"])))}
