"""Ray: a cluster that runs already, or a small one of this machine for a while, and an executor of it."""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any, Literal

import psutil

from construction_panoptic.errors import ParameterError
from construction_panoptic.signals import signal_handlers

_AT_HOME = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name it holds on Linux too: nodes have the address 127.0.0.1, and nobody else can connect.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # 15 otherwise: next to programs of others, workers would stand still.
    "RAY_worker_niceness": "0",
    # Seconds that helpers of Ray outlive the one that started it, should that be killed; 60 otherwise.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    # In the home folder's ~/.ray/auth_token otherwise.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
_ONE_CORE = {"num_cpus": 1}
_RETRIES = 3  # of a task or an actor whose machine or process dies

_users: list[object] = []  # of the cluster, in this process, which leaves it when none is left
_at_end = ExitStack()


@contextmanager
def joined_ray(cores: int | Literal["auto"] = "auto") -> Iterator[Any]:
    """Join a Ray cluster: the one that this process is in already, else that of RAY_ADDRESS, else a new one; gives
    ``ray``.

    A new one is of this machine alone, has ``cores``, listens on the loopback interface, sends nothing to anybody,
    keeps its files in a temporary folder, and is gone with this process. Raises `ParameterError`: Ray is not installed.
    """
    local = "RAY_ADDRESS" not in os.environ
    if local and "ray" not in sys.modules:  # which reads them when it is imported
        for name, value in _AT_HOME.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ParameterError(
            "execution.engine is 'ray', which is not installed; run pip install '.[ray]', or use 'local'."
        ) from None
    if not ray.is_initialized():
        with signal_handlers():  # Ray takes SIGTERM for itself
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **(_new_cluster(cores) if local else {}))
        _at_end.callback(_shut_down, ray)
    _users.append(user := object())
    try:
        yield ray
    finally:
        _users.remove(user)
        if not _users:
            _at_end.close()


def _shut_down(ray: Any) -> None:
    """Leave the cluster; of a new one, end the processes that outlive its raylet, which now and then some do."""
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    processes = [process for raylet in raylets for process in raylet.children(recursive=True)]
    ray.shutdown()
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        process.kill()


def _new_cluster(cores: int | Literal["auto"]) -> dict[str, Any]:
    short = "/tmp" if sys.platform == "darwin" else None  # as paths of sockets must be
    folder = tempfile.TemporaryDirectory(prefix="ray_", dir=short, ignore_cleanup_errors=True)
    return {
        "address": "local",
        "num_cpus": None if cores == "auto" else cores,
        "include_dashboard": False,
        "_temp_dir": _at_end.enter_context(folder),
    }


class RayExecutor(Executor):
    """Runs functions as tasks of a Ray cluster, or in actors, which keep from one call to the next what they made.

    ``actors`` is their number, each called in turn; 0: tasks. ``resources`` is what a task or an actor takes of the
    cluster, such as ``{"num_gpus": 1}``.
    """

    def __init__(self, ray: Any, actors: int = 0, resources: Mapping[str, int] = _ONE_CORE) -> None:
        self.put = ray.put
        self._kill = ray.kill
        kind = ray.remote(_Actor).options(**resources, max_restarts=_RETRIES, max_task_retries=_RETRIES)
        self._actors = [kind.remote() for _ in range(actors)]
        task = ray.remote(_call).options(**resources, max_retries=_RETRIES)
        self._calls = cycle([actor.call.remote for actor in self._actors] or [task.remote])

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`; Ray itself waits until there is room."""
        future: Future[Any] = next(self._calls)(function, *arguments, **options).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End the actors, whatever they do."""
        for actor in self._actors:
            self._kill(actor)


class _Actor:
    def call(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        return _call(function, *arguments, **options)


def _call(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # a task has one core; Ray sees to the threads of OpenMP itself
    return function(*arguments, **options)
