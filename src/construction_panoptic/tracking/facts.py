"""What a run is tagged with, and what is told from these tags later: where it came from, and whether it still lives."""

import hashlib
import math
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import torch

DIGEST_LENGTH = 32  # MLflow keeps at most 36 characters
LONGEST_PARAMETER = 6000  # characters that MLflow keeps of a parameter


def git_tags(project: Path) -> dict[str, str]:
    """Give the commit of the project folder and whether its files differ from it; empty outside git."""
    try:
        commit = _git(project, "rev-parse", "HEAD")
        dirty = bool(_git(project, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def process_tags() -> dict[str, str]:
    """Name the process that writes a run, so that a later one can tell when it has died."""
    return {"host": socket.gethostname(), "process": f"{os.getpid()}@{psutil.Process().create_time():.0f}"}


def device_name() -> str:
    """Name the device that ``device: auto`` takes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def close_abandoned_runs(experiment_id: str) -> None:
    """Mark runs as FAILED whose process on this machine has died without saying so (killed, power cut)."""
    client = mlflow.MlflowClient()
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment_id], filter_string=mine):
        pid, _, created = run.data.tags.get("process", "").partition("@")
        if pid and not _is_alive(int(pid), int(created)):
            client.set_terminated(run.info.run_id, "FAILED")


def file_digest(path: Path) -> str:
    """Give the first 32 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def row_metrics(table: pd.DataFrame, name: str, values: list[str]) -> dict[str, float]:
    """Name each number of a table ``<column>/<row name>``; missing ones are left out."""
    return {
        f"{column}/{row[name]}": float(row[column])
        for row in table.to_dict("records")
        for column in values
        if is_number(row[column])
    }


def flat_parameters(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Name each value of nested parameters by its dotted path, as text."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            flat |= flat_parameters(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:LONGEST_PARAMETER]
    return flat


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that MLflow takes as a metric."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_alive(pid: int, created: int) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - created) < 2  # seconds; ids are used again
    except psutil.NoSuchProcess:
        return False


def _git(project: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=project, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()
