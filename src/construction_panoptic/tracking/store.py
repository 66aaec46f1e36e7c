"""Where runs are kept: the project's database, or a tracking server; and what may be wrong with it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import requests
from mlflow.exceptions import MlflowException

from construction_panoptic.errors import UserError, causes

ARTIFACTS = "mlartifacts"
TOO_MANY_REQUESTS = 429


def make_portable(project: Path) -> None:
    """Let the project's database name its artifacts relative to the project: it may be copied, or moved.

    MLflow makes the path absolute when it creates an experiment, and takes a relative one as it is ever after: from
    the folder in which it runs.
    """
    with closing(sqlite3.connect(project / "mlflow.db")) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE artifact_location LIKE ?", (ARTIFACTS, f"%/{ARTIFACTS}")
        )


def tracking_error(error: BaseException | None) -> UserError | None:
    """Say what to do about an error of the database with the runs, or of a server that does not answer; else None."""
    for cause in causes(error):
        uri = mlflow.get_tracking_uri()
        if isinstance(cause, sqlite3.Error):
            return UserError(
                f"MLflow's database {uri.removeprefix('sqlite:///')} cannot be used: {cause}. {_advice(str(cause))} "
                "Trainings and results are kept elsewhere."
            )
        if isinstance(cause, MlflowException | requests.RequestException) and not is_refusal(cause) and "://" in uri:
            return UserError(
                f"The tracking server {uri} does not answer. Start it, or unset MLFLOW_TRACKING_URI to keep the runs "
                "in mlflow.db."
            )
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow will never take what it was sent; else it may, later."""
    if any(isinstance(cause, sqlite3.Error) for cause in causes(error)):
        return False
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        return isinstance(error, FileNotFoundError | UserError)
    return status < 500 and status != TOO_MANY_REQUESTS


def _advice(reason: str) -> str:
    if "readonly" in reason or "unable to open" in reason:
        return "Make it and its folder writable."
    if "locked" in reason:
        return "End what holds it, such as another program that has it open."
    if "full" in reason or "disk I/O" in reason:
        return "Make room on its disk."
    return "Put a copy of it from before in its place, or move it away to begin a new one."
