"""Files on their way to MLflow: artifacts, pictures, tables and checkpoints, as tasks that can wait."""

import logging
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric
from PIL import Image

logger = logging.getLogger(__name__)

LARGEST_ARCHIVE = 256 * 2**20  # bytes

Task = dict[str, Any]
"""What to do with a file, as plain data: ``kind``, ``path``, ``run_id`` and what the kind needs besides."""


def perform(task: Task, uri: str, *, doubtful: bool = False) -> None:
    """Send a file.

    Args:
        task: what to do.
        uri: where the runs are.
        doubtful: look first whether it is there: an attempt before may have been broken off after it was.

    Kinds of tasks:

    - ``artifact``: a file or folder, into the folder ``target``.
    - ``archive``: a folder as one zip file, into the folder ``target``; see :func:`too_large`.
    - ``image``: a picture, under ``key``, of the epoch ``step``, at ``timestamp`` (ms).
    - ``table``: a CSV file, as the table ``target``.
    - ``checkpoint``: see :func:`log_checkpoint`.

    Raises:
        MlflowException: the server refuses it or does not answer.
        OSError: as above, or the file is not there.
    """
    client = mlflow.MlflowClient(uri)
    path, run_id = Path(task["path"]), task["run_id"]
    if doubtful and _is_there(client, task):
        return
    if task["kind"] == "artifact":
        if path.is_dir():
            client.log_artifacts(run_id, str(path), f"{task['target']}/{path.name}")
        else:
            client.log_artifact(run_id, str(path), task["target"])
    elif task["kind"] == "archive":
        with tempfile.TemporaryDirectory() as folder:
            client.log_artifact(run_id, str(zipped(path, Path(folder))), task["target"])
    elif task["kind"] == "image":
        with Image.open(path) as picture:
            client.log_image(
                run_id, picture, key=task["key"], step=task["step"], timestamp=task["timestamp"], synchronous=True
            )
    elif task["kind"] == "table":
        client.log_table(run_id, pd.read_csv(path), task["target"])
    else:
        log_checkpoint(client, task)


def too_large(task: Task) -> bool:
    """Whether a task is an archive of 256 MiB or more, which is left out."""
    path = Path(task["path"])
    if task["kind"] != "archive" or sum(file.stat().st_size for file in _files(path)) < LARGEST_ARCHIVE:
        return False
    logger.info("%s is too large to be kept in MLflow", path)
    return True


def zipped(source: Path, folder: Path) -> Path:
    """Pack the files of a folder, as they are, into ``<its name>.zip``."""
    with zipfile.ZipFile(folder / f"{source.name}.zip", "w") as archive:
        for path in _files(source):
            archive.write(path, path.relative_to(source))
    return folder / f"{source.name}.zip"


def log_checkpoint(client: mlflow.MlflowClient, task: Task) -> None:
    """Log a checkpoint as a model of its run, with the metrics of its epoch; it replaces an earlier one of its name.

    Args:
        client: the client.
        task: besides ``path`` and ``run_id``: ``experiment_id``, ``name`` of the model, ``stage``, ``epoch``, and
            ``metrics`` of that epoch as (name, value, time in ms). With the time that the run has for it, a metric
            is linked with the model and not one more value of the run.
    """
    run_id, name, epoch = task["run_id"], task["name"], task["epoch"]
    experiment = [task["experiment_id"]]
    for former in client.search_logged_models(experiment, f"source_run_id = '{run_id}' AND name = '{name}'"):
        client.delete_logged_model(former.model_id)
    model = client.create_logged_model(
        task["experiment_id"],
        name,
        source_run_id=run_id,
        params={"epoch": str(epoch)},
        tags={"stage": task["stage"]},
        model_type="checkpoint",
    )
    client.log_model_artifact(model.model_id, task["path"])
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
    linked = [Metric(key, value, at, epoch, model_id=model.model_id) for key, value, at in task["metrics"]]
    client.log_batch(run_id, linked)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_there(client: mlflow.MlflowClient, task: Task) -> bool:
    """Whether a run has what would be there twice if it were sent again; other kinds replace what is there."""
    if task["kind"] == "image":
        key = task["key"].replace("/", "~")  # as MLflow does
        start, folder = f"images/{key}+step+{task['step']}+timestamp+{task['timestamp']}+", "images"
    elif task["kind"] == "table":
        start, folder = task["target"], str(PurePosixPath(task["target"]).parent)
    else:
        return False
    return any(file.path.startswith(start) for file in client.list_artifacts(task["run_id"], folder))
