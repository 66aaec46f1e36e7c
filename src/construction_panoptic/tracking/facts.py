"""What a run is told of: where it comes from, its parameters and numbers."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.files import git_state

DIGEST_LENGTH = 32  # MLflow keeps at most 36 characters
LONGEST_PARAMETER = 6000  # characters that MLflow keeps of a parameter


def origin_tags(project: Path) -> dict[str, str]:
    """Tell the device that ``device: auto`` takes; in git, the project's commit, and whether files differ from it."""
    import torch  # not at the top: it takes seconds, and the command line reads facts too

    cuda = torch.cuda.is_available()
    tags = {"device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"}
    if (state := git_state(project)) is not None:
        commit, dirty = state
        tags |= {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}
    return tags


def checkpoint_epoch(path: Path) -> int:
    """Give the epoch after which a checkpoint was saved."""
    import torch

    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])


def file_digest(path: Path) -> str:
    """Give the first 32 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def row_metrics(table: pd.DataFrame, name: str, values: dict[str, str]) -> dict[str, float]:
    """Name each number of a table ``<what>/<row name>``, ``values`` being what → column; missing ones are left out."""
    rows = table.to_dict("records")
    return {f"{what}/{row[name]}": float(row[c]) for row in rows for what, c in values.items() if is_number(row[c])}


def row_markdown(table: pd.DataFrame, name: str, values: dict[str, str]) -> str:
    """Set the numbers of a table in Markdown, in percent; ``-`` for missing ones."""
    rows = [
        [row[name], *(f"{100 * row[column]:.1f}" if is_number(row[column]) else "-" for column in values.values())]
        for row in table.to_dict("records")
    ]
    lines = [[name, *values], ["---"] * (1 + len(values)), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def flat_parameters(parameters: dict[str, Any]) -> dict[str, str]:
    """Name each value of nested parameters by its dotted path, as text."""
    (flat,) = pd.json_normalize(parameters).to_dict("records")
    return {str(name): str(value)[:LONGEST_PARAMETER] for name, value in flat.items()}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that MLflow takes as a metric."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
