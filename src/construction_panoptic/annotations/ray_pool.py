"""Ray behind the interface of a pool of processes: for more than one machine."""

import logging
import os
from collections.abc import Callable
from typing import Any, Literal

from construction_panoptic.errors import ParameterError


class RayPool:
    """Runs functions in the workers of a Ray cluster.

    Args:
        workers: tasks at a time, each on a core; "auto": as many as the cluster has cores.

    Raises:
        ParameterError: Ray is not installed.
    """

    def __init__(self, workers: int | Literal["auto"]) -> None:
        try:
            import ray
        except ImportError:
            raise ParameterError(
                "execution.engine is 'ray', which is not installed; run pip install '.[ray]', or use 'local'."
            ) from None
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            local: dict[str, Any] = (
                {} if "RAY_ADDRESS" in os.environ else {"num_cpus": None if workers == "auto" else workers}
            )
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, **local)
        self.count = int(ray.cluster_resources().get("CPU", 1)) if workers == "auto" else workers
        self._call = ray.remote(_call)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "RayFuture":
        """Start a call in a worker."""
        return RayFuture(self._ray, self._call.remote(function, *arguments))

    def shutdown(self, **_: Any) -> None:
        """Leave the cluster, if this pool joined or started it."""
        if self._started:
            self._ray.shutdown()


class RayFuture:
    """The result of a call to come."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference

    def result(self) -> Any:
        """Wait for the result."""
        return self._ray.get(self._reference)

    def cancel(self) -> None:
        """Give up the call, if it has not begun."""
        self._ray.cancel(self._reference)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
