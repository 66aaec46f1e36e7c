"""Streams metrics, tables, pictures, checkpoints and data sets to MLflow as Kedro saves and loads them.

What is sent stands in the catalog, under ``metadata.mlflow`` of an entry:

``history: <prefix>``
    The entry is a table with one row an epoch and a column ``epoch``; each new row is sent when it is saved.
``rows: {name: <column>, values: [<column>, …]}``
    The entry is a table; each value column becomes metrics ``<column>/<name>``.
``artifact: <folder>``
    The file or folder is sent when its node has finished.
``input: <context>``
    The file is a data set of the run; it is recorded with its digest when it is loaded or saved.
"""

import hashlib
import logging
import math
import os
import socket
import subprocess
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import torch
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException

from construction_panoptic.catalog.files import local_path

logger = logging.getLogger(__name__)

DIGEST_LENGTH = 32  # MLflow keeps at most 36 characters


class TrackingHook:
    """Sends what the nodes yield and return to the MLflow run that kedro-mlflow opened."""

    def __init__(self) -> None:
        self._project = Path.cwd()
        self._catalog: CatalogProtocol | None = None
        self._sent_epochs: dict[str, int] = {}
        self._inputs: set[str] = set()
        self._pending: dict[str, str] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Switch system metrics on before kedro-mlflow opens the run."""
        self._project = context.project_path
        mlflow.enable_system_metrics_logging()

    @hook_impl
    def before_pipeline_run(self, catalog: CatalogProtocol) -> None:
        """Tag the run with what it takes to repeat it: commit and device."""
        self._catalog, self._sent_epochs, self._inputs, self._pending = catalog, {}, set(), {}
        run = mlflow.active_run()
        if run is None:
            return
        self._send(close_abandoned_runs, run.info.experiment_id)
        tags = {**git_tags(self._project), "device": device_name(), **process_tags()}
        if run.info.run_name == "__default__":
            tags["mlflow.runName"] = "main_job"
        self._send(mlflow.set_tags, tags)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Record a data set that the run reads."""
        self._record_input(dataset_name)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Send metrics at once, so that they show while the epoch loop runs."""
        wanted = self._wanted(dataset_name)
        if "history" in wanted:
            self._send_history(dataset_name, wanted["history"], data)
        if "rows" in wanted:
            self._send(mlflow.log_metrics, row_metrics(data, **wanted["rows"]))
        if "artifact" in wanted:
            self._pending[dataset_name] = wanted["artifact"]
        self._record_input(dataset_name)

    @hook_impl(tryfirst=True)
    def before_node_run(self) -> None:
        """Send the artifacts of the training that has just ended."""
        self._send_pending()

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Send what is left, before kedro-mlflow closes the run."""
        self._send_pending()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Send what is left of a failed run too: its best checkpoint so far may be what one wants."""
        self._send_pending()

    def _wanted(self, name: str) -> dict[str, Any]:
        if self._catalog is None or mlflow.active_run() is None or name not in self._catalog:
            return {}
        metadata = getattr(self._catalog.get(name), "metadata", None) or {}
        return metadata.get("mlflow") or {}

    def _send(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """Call MLflow; a tracking server that fails costs a warning, never the training."""
        try:
            function(*args, **kwargs)
        except (MlflowException, OSError) as error:
            logger.warning("MLflow did not take %s: %s", function.__name__, str(error).splitlines()[0])

    def _send_pending(self) -> None:
        """Send files once their node has ended: a training saves its checkpoint anew each epoch."""
        while self._pending and self._catalog is not None:
            name, folder = self._pending.popitem()
            path = local_path(self._catalog, name)
            if path is not None and path.is_dir():
                self._send(mlflow.log_artifacts, str(path), f"{folder}/{path.name}")
            elif path is not None and path.is_file():
                self._send(mlflow.log_artifact, str(path), folder)

    def _send_history(self, name: str, prefix: str, history: pd.DataFrame) -> None:
        new = history[history["epoch"] > self._sent_epochs.get(name, 0)]
        for row in new.to_dict("records"):
            epoch = int(row.pop("epoch"))
            metrics = {f"{prefix}/{key}": float(value) for key, value in row.items() if _is_number(value)}
            self._send(mlflow.log_metrics, metrics, step=epoch)
            self._sent_epochs[name] = epoch

    def _record_input(self, name: str) -> None:
        wanted = self._wanted(name)
        path = local_path(self._catalog, name) if self._catalog is not None and "input" in wanted else None
        if path is None or name in self._inputs:
            return
        self._inputs.add(name)
        with warnings.catch_warnings():
            # A local file has two sources registered in MLflow, both of them this one.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(path.as_uri())
        dataset = MetaDataset(  # type: ignore[abstract]  # MLflow itself makes them so
            source, name=name, digest=file_digest(path)
        )
        self._send(mlflow.log_input, dataset, context=wanted["input"])


def row_metrics(table: pd.DataFrame, name: str, values: list[str]) -> dict[str, float]:
    """Name each number of a table ``<column>/<row name>``; missing ones are left out."""
    return {
        f"{column}/{row[name]}": float(row[column])
        for row in table.to_dict("records")
        for column in values
        if _is_number(row[column])
    }


def file_digest(path: Path) -> str:
    """Give the first 32 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def git_tags(project: Path) -> dict[str, str]:
    """Give the commit of the project folder and whether its files differ from it; empty outside git."""
    try:
        commit = _git(project, "rev-parse", "HEAD")
        dirty = bool(_git(project, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def process_tags() -> dict[str, str]:
    """Name the process that writes a run, so that a later one can tell when it has died."""
    return {"host": socket.gethostname(), "process": f"{os.getpid()}@{psutil.Process().create_time():.0f}"}


def close_abandoned_runs(experiment_id: str) -> None:
    """Mark runs as FAILED whose process on this machine has died without saying so (killed, power cut)."""
    client = mlflow.MlflowClient()
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment_id], filter_string=mine):
        pid, _, created = run.data.tags.get("process", "").partition("@")
        if pid and not _is_alive(int(pid), int(created)):
            client.set_terminated(run.info.run_id, "FAILED")


def mark_run_killed() -> None:
    """Close the open run, if there is one, as KILLED: somebody stopped it. MLflow itself would say FINISHED."""
    try:
        while mlflow.active_run() is not None:  # kedro-mlflow opens it twice
            mlflow.end_run("KILLED")
    except (MlflowException, OSError) as error:
        logger.warning("MLflow did not take the end of the run: %s", str(error).splitlines()[0])


def _is_alive(pid: int, created: int) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - created) < 2  # seconds; ids are used again
    except psutil.NoSuchProcess:
        return False


def device_name() -> str:
    """Name the device that ``device: auto`` takes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def _git(project: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=project, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
