"""What a run is told of: where it comes from, its parameters and numbers."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from construction_panoptic.files import git_state

DIGEST_LENGTH = 32  # MLflow keeps at most 36 characters
LONGEST_PARAMETER = 6000  # characters that MLflow keeps of a parameter


def git_tags(project: Path) -> dict[str, str]:
    """Give the commit of the project folder and whether its files differ from it; empty outside git."""
    state = git_state(project)
    if state is None:
        return {}
    commit, dirty = state
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def device_name() -> str:
    """Name the device that ``device: auto`` takes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def checkpoint_epoch(path: Path) -> int:
    """Give the epoch after which a checkpoint was saved."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])


def file_digest(path: Path) -> str:
    """Give the first 32 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def row_metrics(table: pd.DataFrame, name: str, values: list[str]) -> dict[str, float]:
    """Name each number of a table ``<column>/<row name>``; missing ones are left out."""
    rows = table.to_dict("records")
    return {f"{value}/{row[name]}": float(row[value]) for row in rows for value in values if is_number(row[value])}


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
