"""Files on their way to MLflow: artifacts, pictures, tables and checkpoints, as tasks that can wait."""

import logging
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric
from PIL import Image

logger = logging.getLogger(__name__)

LARGEST_ARCHIVE = 256 * 2**20  # bytes

Task = dict[str, Any]
"""What to do with a file, as plain data: ``kind``, ``path``, ``run_id`` and what the kind needs besides."""


def perform(task: Task) -> None:
    """Send a file.

    Kinds of tasks:

    - ``artifact``: a file or folder, into the folder ``target``.
    - ``archive``: a folder as one zip file, into the folder ``target``; one with 256 MiB or more is left out.
    - ``image``: a picture, under ``key``, of the epoch ``step``, at ``timestamp`` (ms).
    - ``table``: a CSV file, as the table ``target``.
    - ``checkpoint``: see :func:`log_checkpoint`.

    Raises:
        MlflowException: the server refuses it or does not answer.
        OSError: as above, or the file is not there.
    """
    client = mlflow.MlflowClient()
    path, run_id = Path(task["path"]), task["run_id"]
    if task["kind"] == "artifact":
        if path.is_dir():
            client.log_artifacts(run_id, str(path), f"{task['target']}/{path.name}")
        else:
            client.log_artifact(run_id, str(path), task["target"])
    elif task["kind"] == "archive":
        with tempfile.TemporaryDirectory() as folder:
            file = zipped(path, Path(folder))
            if file is not None:
                client.log_artifact(run_id, str(file), task["target"])
    elif task["kind"] == "image":
        with Image.open(path) as picture:
            client.log_image(
                run_id, picture, key=task["key"], step=task["step"], timestamp=task["timestamp"], synchronous=True
            )
    elif task["kind"] == "table":
        client.log_table(run_id, pd.read_csv(path), task["target"])
    else:
        log_checkpoint(client, task)


def zipped(source: Path, folder: Path) -> Path | None:
    """Pack the files of a folder, as they are, into ``<its name>.zip``; None if they are 256 MiB or more."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) >= LARGEST_ARCHIVE:
        logger.info("%s is too large to be kept in MLflow", source)
        return None
    with zipfile.ZipFile(folder / f"{source.name}.zip", "w") as archive:
        for path in files:
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
