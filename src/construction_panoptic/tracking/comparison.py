"""The comparison as a whole: runs by id or name in, a page and tables out."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd

from construction_panoptic.errors import ParameterError
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.differences import ImageCounts, image_counts, quality_differences
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.files import write_bytes
from construction_panoptic.tracking.facts import file_digest
from construction_panoptic.tracking.runs import find_run, read_runs
from construction_panoptic.visualisation.comparison_pictures import LocalData, pictures_of_differences
from construction_panoptic.visualisation.comparison_report import ComparedRun, comparison_page

PICTURED_IMAGES = 8
NAMES_ONLY = ("run_name",)  # parameters that say nothing of a model


class Validation(NamedTuple):
    """The project's own validation set: COCO panoptic, the folder of its PNGs, and that of its images."""

    file: Path
    png_folder: Path
    image_folder: Path


class Comparison(NamedTuple):
    """A comparison.

    Attributes:
        page: ``comparison.html``; ``quality.csv`` and ``parameters.csv`` are beside it.
        text: the same tables, to be printed.
    """

    page: Path
    text: str


def compare_runs(
    names: Sequence[str],
    experiment: str,
    output: Path,
    *,
    validation: Validation | None = None,
    unfinished: bool = False,
) -> Comparison:
    """Compare runs with the first of them.

    Args:
        names: ids or names of two runs or more.
        experiment: name of their experiment.
        output: folder to write to.
        validation: for pictures, and runs without an error analysis, if it is the runs' own.
        unfinished: whether names may be those of runs that failed or were stopped.

    Raises:
        ParameterError: fewer than two runs, or one is not found.
        InputDataError: a run has not been evaluated, or they have different validation sets.
    """
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise ParameterError(f"there is no experiment {experiment!r} yet: train first")
    listed = [find_run(client, known.experiment_id, name, unfinished=unfinished) for name in names]
    found = {run.info.run_id: run for run in listed}
    if len(found) < 2:
        raise ParameterError("give the ids or names of at least two runs to compare")

    def match(predictions: Path, digest: str) -> pd.DataFrame | None:
        if (local := _local(validation, digest)) is None:
            return None
        predicted = json.loads((predictions / PREDICTIONS_FILE).read_bytes())
        return match_segments(local.truth, local.png_folder, predicted, predictions)

    with tempfile.TemporaryDirectory() as folder:
        runs = read_runs(client, list(found.values()), Path(folder), match)
        classes = class_rows(runs)
        counts = on_the_same_images([image_counts(run.segments, classes["category_id"].tolist()) for run in runs])
        differences = {
            run.name: quality_differences(counts[0], count, classes)
            for run, count in zip(runs[1:], counts[1:], strict=True)
        }
        parameters = differing_parameters(runs)
        qualities = [image_scores(run.segments).reindex(counts[0].images).to_numpy() for run in runs]
        local = _local(validation, runs[0].validation)
        pictures = pictures_of_differences(runs, counts[0].images, qualities, local, PICTURED_IMAGES)
        page = comparison_page(runs, differences, parameters, pictures)
    named = pd.concat([table.assign(run=name) for name, table in differences.items()])
    write_bytes(output / "comparison.html", page.encode())
    write_bytes(output / "parameters.csv", parameters.to_csv(index=False).encode())
    write_bytes(output / "quality.csv", named.to_csv(index=False).encode())
    return Comparison(output / "comparison.html", _text(runs[0].name, differences, parameters))


def class_rows(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Give the classes that occur in any of the runs: ``category_id``, ``name``, ``kind``."""
    tables = [run.classes[["category_id", "name", "kind"]] for run in runs]
    rows = pd.concat(tables).drop_duplicates("category_id").astype({"category_id": int})
    return rows.sort_values("category_id", ignore_index=True)


def on_the_same_images(counts: Sequence[ImageCounts]) -> list[ImageCounts]:
    """Give counts of all images that any has; an image without a segment in it counts nothing."""
    images = np.unique(np.concatenate([count.images for count in counts]))
    same = []
    for count in counts:
        table = np.zeros((4, len(images), count.counts.shape[2]))
        table[:, np.searchsorted(images, count.images)] = count.counts
        same.append(ImageCounts(images, table))
    return same


def differing_parameters(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Give the parameters that are not the same in all runs: ``parameter``, and a column a run ("" for none).

    Groups that a run does not have, since it ran other pipelines, say nothing of a difference.
    """
    groups = set.intersection(*({name.partition(".")[0] for name in run.parameters} for run in runs))
    names = sorted({name for run in runs for name in run.parameters if name.partition(".")[0] in groups})
    rows = [[name, *(run.parameters.get(name, "") for run in runs)] for name in names if name not in NAMES_ONLY]
    return pd.DataFrame(
        [row for row in rows if len(set(row[1:])) > 1], columns=["parameter", *(run.name for run in runs)]
    )


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
