"""The comparison of runs, given by id or name: a page and tables out of what MLflow has of them."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.differences import image_counts, quality_differences
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.files import write_bytes
from construction_panoptic.tracking.facts import file_digest
from construction_panoptic.visualisation.comparison_report import (
    ComparedRun,
    LocalData,
    comparison_page,
    pictures_of_differences,
)

SEGMENTS = "errors/segment_matches.parquet"
CLASSES = "results/panoptic_quality.csv"
PREDICTIONS = "results/panoptic_predictions.zip"
VALIDATION_SET = "panoptic_val"
UNFINISHED = ("FAILED", "KILLED")
PICTURED_IMAGES = 8


class Validation(NamedTuple):
    """The project's own validation set: COCO panoptic, the folder of its PNGs, and that of its images."""

    file: Path
    png_folder: Path
    image_folder: Path


def compare_runs(
    names: Sequence[str],
    experiment: str,
    output: Path,
    *,
    validation: Validation | None = None,
    unfinished: bool = False,
) -> str:
    """Compare runs with the first of them: ``comparison.html``, ``quality.csv``, ``parameters.csv``, tables as text.

    Names are ids or names of two runs or more of an experiment, with ``unfinished`` also of some that failed or were
    stopped. ``validation`` is for pictures, and runs without an error analysis, if it is the runs' own.

    Raises:
        ParameterError: fewer than two runs, or one is not found.
        InputDataError: a run has not been evaluated, or they have different validation sets.
    """
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise ParameterError(f"there is no experiment {experiment!r} yet: train first")
    listed = [_find_run(client, known.experiment_id, name, unfinished=unfinished) for name in names]
    found = {run.info.run_id: run for run in listed}
    if len(found) < 2:
        raise ParameterError("give the ids or names of at least two runs to compare")

    with tempfile.TemporaryDirectory() as folder:
        runs = _read_runs(client, list(found.values()), Path(folder), validation)
        tables = pd.concat([run.classes[["category_id", "name", "kind"]] for run in runs])
        classes = tables.drop_duplicates("category_id").astype({"category_id": int})
        classes = classes.sort_values("category_id", ignore_index=True)
        images = np.unique(pd.concat([run.segments["image_id"] for run in runs]))
        counts = [image_counts(run.segments, images, classes["category_id"].tolist()) for run in runs]
        differences = {
            run.name: quality_differences(counts[0], count, classes)
            for run, count in zip(runs[1:], counts[1:], strict=True)
        }
        parameters = _differing_parameters(runs)
        qualities = [image_scores(run.segments).reindex(images).to_numpy() for run in runs]
        local = _local(validation, runs[0].validation)
        pictures = pictures_of_differences(runs, images, qualities, local, PICTURED_IMAGES)
        page = comparison_page(runs, differences, parameters, pictures)
    named = pd.concat([table.assign(run=name) for name, table in differences.items()])
    write_bytes(output / "comparison.html", page.encode())
    write_bytes(output / "parameters.csv", parameters.to_csv(index=False).encode())
    write_bytes(output / "quality.csv", named.to_csv(index=False).encode())
    return _text(runs[0].name, differences, parameters)


def _differing_parameters(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Give the parameters that are not the same in all runs: ``parameter``, and a column a run ("" for none).

    Groups that a run does not have, since it ran other pipelines, say nothing of a difference.
    """
    groups = set.intersection(*({name.partition(".")[0] for name in run.parameters} for run in runs))
    names = sorted({name for run in runs for name in run.parameters if name.partition(".")[0] in groups})
    rows = [[name, *(run.parameters.get(name, "") for run in runs)] for name in names if name != "run_name"]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return pd.DataFrame(differing, columns=["parameter", *(run.name for run in runs)])


def _find_run(client: mlflow.MlflowClient, experiment_id: str, name: str, *, unfinished: bool) -> Run:
    """Find a run by its id, or by its name; of a training, the run that it belongs to."""
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


def _read_runs(
    client: mlflow.MlflowClient, runs: Sequence[Run], folder: Path, validation: Validation | None
) -> list[ComparedRun]:
    """Read runs, whose files are downloaded to ``folder``; segments are matched for one without an error analysis."""
    digests = {run.info.run_id: _validation_digest(run) for run in runs}
    names = [run.info.run_name for run in runs]
    read = []
    for run in runs:
        own, name, digest = folder / run.info.run_id, run.info.run_name, digests[run.info.run_id]
        own.mkdir()
        classes, segments, predictions = (_download(client, run, p, own) for p in (CLASSES, SEGMENTS, PREDICTIONS))
        local = None if segments else _local(validation, digest)
        matched = pd.read_parquet(segments) if segments else _matched(predictions, own / "predictions", local)
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
                date=_begun(run),
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


def _begun(run: Run) -> str:
    return f"{datetime.fromtimestamp(run.info.start_time / 1000).astimezone():%Y-%m-%d %H:%M}"


def _described(run: Run) -> str:
    quality = run.data.metrics.get("pq/All")
    return f"{run.info.run_id}  {_begun(run)}  {'no PQ' if quality is None else f'PQ {100 * quality:.1f}'}"


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


def _matched(archive: Path | None, folder: Path, local: LocalData | None) -> pd.DataFrame | None:
    if archive is None or local is None:
        return None
    shutil.unpack_archive(archive, folder)
    predicted = json.loads((folder / PREDICTIONS_FILE).read_bytes())
    return match_segments(local.truth, local.png_folder, predicted, folder)


def _local(validation: Validation | None, digest: str) -> LocalData | None:
    """Read the project's validation set, if it is there and the one with that digest."""
    if validation is None or not validation.file.is_file() or file_digest(validation.file) != digest:
        return None
    return LocalData(json.loads(validation.file.read_bytes()), validation.png_folder, validation.image_folder)


def _text(first: str, differences: Mapping[str, pd.DataFrame], parameters: pd.DataFrame) -> str:
    parts = []
    for name, rows in differences.items():
        known = rows.dropna(subset=["difference"])
        table = pd.DataFrame({"class": known["name"], "images": known["images"]})
        table[first], table[name] = 100 * known["one"], 100 * known["other"]
        table["difference"] = [f"{100 * value:+.1f}" for value in known["difference"]]
        bounds = zip(known["low"], known["high"], strict=True)
        table["95 % interval"] = [f"{100 * low:+.1f} to {100 * high:+.1f}" for low, high in bounds]
        parts.append(f"PQ of {name} against {first}\n{table.to_string(index=False, float_format='{:.1f}'.format)}")
    listed = parameters.to_string(index=False) if len(parameters) else "none"
    return "\n\n".join([*parts, f"Parameters that differ\n{listed}"])
