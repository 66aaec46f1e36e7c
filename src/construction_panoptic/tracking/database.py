"""Errors of the tracking database, in words for people."""

import sqlite3

import mlflow

from construction_panoptic.errors import UserError


class DatabaseError(UserError):
    """The tracking database cannot be used."""


def database_error(error: BaseException | None) -> DatabaseError | None:
    """Say what to do about an error that, or whose cause, is one of the SQLite database with the runs; else None."""
    while error is not None:
        if isinstance(error, sqlite3.Error):
            place = mlflow.get_tracking_uri().removeprefix("sqlite:///")
            return DatabaseError(
                f"MLflow's database {place} cannot be used: {error}. {_advice(str(error))} "
                "Then go on with the same command and --only-missing-outputs; trainings and results are kept elsewhere."
            )
        error = error.__cause__ or error.__context__
    return None


def _advice(reason: str) -> str:
    if "readonly" in reason or "unable to open" in reason:
        return "Make it and its folder writable."
    if "locked" in reason:
        return "End what holds it, such as another program that has it open."
    if "full" in reason or "disk I/O" in reason:
        return "Make room on its disk."
    return "Put a copy of it from before in its place, or move it away to begin a new one."
