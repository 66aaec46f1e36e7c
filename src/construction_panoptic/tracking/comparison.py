"""The comparison of runs, given by id or name: a page and tables out of what MLflow has of them."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.differences import image_counts, quality_differences
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.files import write_bytes
from construction_panoptic.tracking.facts import file_digest
from construction_panoptic.tracking.runs import begun, run_by_id
from construction_panoptic.visualisation.comparison_report import (
    ComparedRun,
    Validation,
    comparison_page,
    pictures_of_differences,
)

SEGMENTS = "errors/segment_matches.parquet"
CLASSES = "results/panoptic_quality.csv"
PREDICTIONS = "results/panoptic_predictions.zip"
VALIDATION_SET = "panoptic_val"
PICTURED_IMAGES = 8


def compare_runs(found: Sequence[Run], output: Path, validation: Validation | None = None) -> str:
    """Compare runs with the first of them: ``comparison.html``, ``quality.csv``, ``parameters.csv``, tables as text.

    ``found`` is what `find_runs` gives. ``validation`` is for pictures, and runs without an error analysis, if it is
    the runs' own. Raises `InputDataError`: a run has not been evaluated, or they have different validation sets.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = _read_runs(mlflow.MlflowClient(), found, Path(folder), validation)
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
                "or neither analysed nor evaluated on the validation set that is in this project. A run of a whole job "
                "can be compared; so can one of the pipelines that evaluate and analyse."
            )
        read.append(
            ComparedRun(
                run_id=run.info.run_id,
                name=name if names.count(name) == 1 else f"{name} {run.info.run_id[:6]}",
                parameters=_parameters(client, run),
                metrics=dict(run.data.metrics),
                tags=dict(run.data.tags),
                date=begun(run),
                validation=digest,
                classes=_read_classes(classes),
                segments=matched,
                predictions=predictions,
            )
        )
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{run.info.run_name}: {digests[run.info.run_id][:8] or 'unknown'}" for run in runs)
        raise InputDataError(
            f"these runs were evaluated on different validation sets ({listed}), so their PQ cannot be compared. "
            "Evaluate both models on one set: run the pipelines that evaluate them again."
        )
    return read


def _read_classes(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, keep_default_na=False, na_values="")  # a class may be called None
    return table.dropna(subset=["category_id"])


def _parameters(client: mlflow.MlflowClient, run: Run) -> dict[str, str]:
    """Parameters of a run, and of the trainings that its model comes from."""
    parameters = dict(run.data.params)
    for tag, run_id in run.data.tags.items():
        if tag.endswith("_run"):
            training = run_by_id(client, run_id)
            parameters = (_parameters(client, training[0]) if training else {}) | parameters
    return parameters


def _validation_digest(run: Run) -> str:
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    return next((item.dataset.digest for item in inputs if item.dataset.name == VALIDATION_SET), "")


def _download(client: mlflow.MlflowClient, run: Run, path: str, folder: Path) -> Path | None:
    names = [file.path for file in client.list_artifacts(run.info.run_id, path.rpartition("/")[0])]
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))) if path in names else None


def _matched(archive: Path | None, folder: Path, local: Validation | None) -> pd.DataFrame | None:
    if archive is None or local is None:
        return None
    shutil.unpack_archive(archive, folder)
    predicted = json.loads((folder / PREDICTIONS_FILE).read_bytes())
    return match_segments(local.truth, local.png_folder, predicted, folder)


def _local(validation: Validation | None, digest: str) -> Validation | None:
    """Give the project's validation set, if it is there and the one with that digest."""
    known = validation is not None and validation.file.is_file() and file_digest(validation.file) == digest
    return validation if known else None


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
