"""Runs to compare, read from MLflow: parameters, final numbers, what became of each segment, predictions."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from construction_panoptic.errors import InputDataError, ParameterError

SEGMENTS, CLASSES, PREDICTIONS = (
    "errors/segment_matches.parquet",
    "results/panoptic_quality.csv",
    "results/panoptic_predictions.zip",
)
VALIDATION_SET = "panoptic_val"


@dataclass(frozen=True)
class ComparedRun:
    """A run, as far as it is compared.

    Attributes:
        run_id: its id.
        name: its name; with its id where others of those compared have the same.
        parameters: by dotted path, of the run and of the trainings whose model it evaluates.
        metrics: its final numbers.
        tags: its tags.
        validation: digest of the validation set.
        classes: columns ``category_id``, ``name``, ``kind``.
        segments: a row a segment, see `evaluation.segments.match_segments`.
        predictions: the zipped predictions, or None.
    """

    run_id: str
    name: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    validation: str
    classes: pd.DataFrame
    segments: pd.DataFrame
    predictions: Path | None


def find_run(client: mlflow.MlflowClient, experiment_id: str, name: str) -> Run:
    """Find a run by its id, or by its name; of a training, the run that it belongs to.

    Raises:
        ParameterError: there is none, or there are several of that name.
    """
    found = [run for run in _by_id(client, name) if run.info.experiment_id == experiment_id]
    quoted = name.replace("'", "''")
    found = found or list(client.search_runs([experiment_id], f"attributes.run_name = '{quoted}'"))
    if len(found) > 1:
        raise ParameterError(f"{len(found)} runs are named {name!r}; give an id: {', '.join(_ids(found))}")
    if not found:
        raise ParameterError(f"there is no run with the id or name {name!r}; mlflow ui lists them")
    parent = found[0].data.tags.get("mlflow.parentRunId")
    return found[0] if parent is None else client.get_run(parent)


def read_runs(client: mlflow.MlflowClient, runs: Sequence[Run], folder: Path) -> list[ComparedRun]:
    """Read runs.

    Args:
        client: the client.
        runs: what `find_run` gave.
        folder: where their files are downloaded to.

    Raises:
        InputDataError: a run has not been evaluated, or they have different validation sets.
    """
    names = [run.info.run_name for run in runs]
    read = []
    for run in runs:
        own = Path(tempfile.mkdtemp(dir=folder))
        name = run.info.run_name
        read.append(
            ComparedRun(
                run_id=run.info.run_id,
                name=name if names.count(name) == 1 else f"{name} {run.info.run_id[:6]}",
                parameters=_parameters(client, run),
                metrics=dict(run.data.metrics),
                tags=dict(run.data.tags),
                validation=_validation_digest(run),
                classes=pd.read_csv(_download(client, run, CLASSES, own)).dropna(subset=["category_id"]),
                segments=pd.read_parquet(_download(client, run, SEGMENTS, own)),
                predictions=_download_if_there(client, run, PREDICTIONS, own),
            )
        )
    _check_validation(read)
    return read


def _by_id(client: mlflow.MlflowClient, name: str) -> list[Run]:
    try:
        return [client.get_run(name)]
    except MlflowException:
        return []


def _ids(runs: Sequence[Run]) -> list[str]:
    return [run.info.run_id for run in runs]


def _parameters(client: mlflow.MlflowClient, run: Run) -> dict[str, str]:
    """Parameters of a run, and of the trainings that its model comes from."""
    parameters = dict(run.data.params)
    for tag, run_id in run.data.tags.items():
        if tag.endswith("_run"):
            training = _by_id(client, run_id)
            parameters = (_parameters(client, training[0]) if training else {}) | parameters
    return parameters


def _validation_digest(run: Run) -> str:
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    return next((item.dataset.digest for item in inputs if item.dataset.name == VALIDATION_SET), "")


def _download(client: mlflow.MlflowClient, run: Run, path: str, folder: Path) -> Path:
    found = _download_if_there(client, run, path, folder)
    if found is None:
        raise InputDataError(
            f"run {run.info.run_name} ({run.info.run_id}) has no {path}: it has not been evaluated. Only a run with "
            "panoptic_evaluation and error_analysis in it can be compared, as every full kedro run is."
        )
    return found


def _download_if_there(client: mlflow.MlflowClient, run: Run, path: str, folder: Path) -> Path | None:
    names = [file.path for file in client.list_artifacts(run.info.run_id, path.rpartition("/")[0])]
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))) if path in names else None


def _check_validation(runs: Sequence[ComparedRun]) -> None:
    digests = {run.name: run.validation for run in runs}
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{name}: {digest[:8] or 'unknown'}" for name, digest in digests.items())
        raise InputDataError(
            f"these runs were evaluated on different validation sets ({listed}), so their PQ cannot be compared. "
            "Evaluate both models on one set: kedro run --pipelines panoptic_evaluation,error_analysis"
        )
