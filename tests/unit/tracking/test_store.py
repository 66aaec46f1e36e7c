"""What MLflow says of a database that cannot be used, and what people are told."""

import sqlite3
from pathlib import Path

import mlflow.store.db.utils
import pytest

from construction_panoptic.tracking import tracking_error


def told(path: Path) -> str:
    """Ask for a run to be created; give the message."""
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever MLflow raises
        mlflow.MlflowClient().create_run("0")
    message = str(tracking_error(caught.value))
    assert f"MLflow's database {path} cannot be used" in message
    return message


@pytest.mark.usefixtures("experiment")
def test_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(b"no database" * 1000)
    assert "file is not a database. Put a copy" in told(path)


@pytest.mark.usefixtures("experiment")
def test_a_database_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.store.db.utils, "MAX_RETRY_COUNT", 1)  # MLflow tries for more than a minute
    path = tmp_path / "folder.db"
    path.mkdir()
    assert "Make it and its folder writable" in told(path)


def test_other_errors_are_none_of_it() -> None:
    assert tracking_error(ValueError("database is locked")) is None
    assert "End what holds it" in str(tracking_error(sqlite3.OperationalError("database is locked")))
    assert "writable" in str(tracking_error(sqlite3.OperationalError("attempt to write a readonly database")))
