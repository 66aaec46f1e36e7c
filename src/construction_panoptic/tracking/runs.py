"""Runs to compare, read from MLflow: parameters, final numbers, what became of each segment, predictions."""

import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.visualisation.comparison_report import ComparedRun

SEGMENTS = "errors/segment_matches.parquet"
CLASSES = "results/panoptic_quality.csv"
PREDICTIONS = "results/panoptic_predictions.zip"
VALIDATION_SET = "panoptic_val"
UNFINISHED = ("FAILED", "KILLED")

Matching = Callable[[Path, str], pd.DataFrame | None]
"""Gives the matched segments of a folder of predictions on the validation set with a digest; None without that set."""


def find_run(client: mlflow.MlflowClient, experiment_id: str, name: str, *, unfinished: bool = False) -> Run:
    """Find a run by its id, or by its name; of a training, the run that it belongs to.

    Args:
        client: the client.
        experiment_id: id of the experiment.
        name: id or name.
        unfinished: whether a name may be that of a run that failed or was stopped.

    Raises:
        ParameterError: there is none, or there are several of that name.
    """
    quoted = name.replace("'", "''")
    named = client.search_runs([experiment_id], f"attributes.run_name = '{quoted}'")
    kept = [run for run in named if unfinished or run.info.status not in UNFINISHED]
    found = [run for run in _by_id(client, name) if run.info.experiment_id == experiment_id] or kept
    if len(found) > 1:
        listed = "".join(f"\n  {_described(run)}" for run in found)
        raise ParameterError(f"{len(found)} runs are named {name!r}; give an id:{listed}")
    if not found and named:
        raise ParameterError(f"the runs named {name!r} failed or were stopped; --unfinished takes them too")
    if not found:
        raise ParameterError(f"there is no run with the id or name {name!r}; mlflow ui lists them")
    parent = found[0].data.tags.get("mlflow.parentRunId")
    return found[0] if parent is None else client.get_run(parent)


def read_runs(client: mlflow.MlflowClient, runs: Sequence[Run], folder: Path, match: Matching) -> list[ComparedRun]:
    """Read runs.

    Args:
        client: the client.
        runs: what `find_run` gave.
        folder: where their files are downloaded to.
        match: for a run without an error analysis.

    Raises:
        InputDataError: a run has not been evaluated, or they have different validation sets.
    """
    digests = {run.info.run_id: _validation_digest(run) for run in runs}
    names = [run.info.run_name for run in runs]
    read = []
    for run in runs:
        own = folder / run.info.run_id
        own.mkdir()
        name = run.info.run_name
        classes, segments, predictions = (
            _download(client, run, path, own) for path in (CLASSES, SEGMENTS, PREDICTIONS)
        )
        digest = digests[run.info.run_id]
        matched = pd.read_parquet(segments) if segments else _matched(predictions, own / "predictions", digest, match)
        if classes is None or matched is None:
            raise InputDataError(
                f"run {name} ({run.info.run_id}) has no {SEGMENTS if classes else CLASSES}: it has not been evaluated, "
                "or neither analysed nor evaluated on the validation set that is in this project. As every full kedro "
                "run, it can be compared when it has panoptic_evaluation and error_analysis in it."
            )
        read.append(
            ComparedRun(
                run_id=run.info.run_id,
                name=name if names.count(name) == 1 else f"{name} {run.info.run_id[:6]}",
                parameters=_parameters(client, run),
                metrics=dict(run.data.metrics),
                tags=dict(run.data.tags),
                validation=digest,
                classes=pd.read_csv(classes).dropna(subset=["category_id"]),
                segments=matched,
                predictions=predictions,
            )
        )
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{run.info.run_name}: {digests[run.info.run_id][:8] or 'unknown'}" for run in runs)
        raise InputDataError(
            f"these runs were evaluated on different validation sets ({listed}), so their PQ cannot be compared. "
            "Evaluate both models on one set: kedro run --pipelines panoptic_evaluation"
        )
    return read


def _by_id(client: mlflow.MlflowClient, name: str) -> list[Run]:
    try:
        return [client.get_run(name)]
    except MlflowException:
        return []


def _described(run: Run) -> str:
    begun = datetime.fromtimestamp(run.info.start_time / 1000).astimezone()
    quality = run.data.metrics.get("pq/All")
    return f"{run.info.run_id}  {begun:%Y-%m-%d %H:%M}  {'no PQ' if quality is None else f'PQ {100 * quality:.1f}'}"


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


def _download(client: mlflow.MlflowClient, run: Run, path: str, folder: Path) -> Path | None:
    names = [file.path for file in client.list_artifacts(run.info.run_id, path.rpartition("/")[0])]
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))) if path in names else None


def _matched(predictions: Path | None, folder: Path, digest: str, match: Matching) -> pd.DataFrame | None:
    if predictions is None:
        return None
    with zipfile.ZipFile(predictions) as archive:
        archive.extractall(folder)
    return match(folder, digest)
