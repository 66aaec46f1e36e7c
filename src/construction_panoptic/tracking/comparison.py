"""The comparison as a whole: runs by id or name in, a page and tables out."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.errors import ParameterError
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.differences import ImageCounts, image_counts, quality_differences
from construction_panoptic.files import write_bytes
from construction_panoptic.tracking.runs import ComparedRun, find_run, read_runs
from construction_panoptic.visualisation.comparison_pictures import LocalData, pictures_of_differences
from construction_panoptic.visualisation.comparison_report import comparison_page

PICTURED_IMAGES = 8


def compare_runs(
    names: Sequence[str],
    experiment: str,
    output: Path,
    *,
    validation_file: Path | None = None,
    converted: ConvertedImages | None = None,
) -> Path:
    """Compare runs with the first of them.

    Args:
        names: ids or names of two runs or more.
        experiment: name of their experiment.
        output: folder to write ``comparison.html``, ``parameters.csv`` and ``quality.csv`` to.
        validation_file: the project's validation set, COCO panoptic; pictures are drawn if it is the runs' own.
        converted: where its images and PNGs lie.

    Returns:
        The page.

    Raises:
        ParameterError: fewer than two runs, or one is not found.
        InputDataError: a run has not been evaluated, or they have different validation sets.
    """
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise ParameterError(f"there is no experiment {experiment!r} yet: train first")
    found = {run.info.run_id: run for run in (find_run(client, known.experiment_id, name) for name in names)}
    if len(found) < 2:
        raise ParameterError("give the ids or names of at least two runs to compare")
    with tempfile.TemporaryDirectory() as folder:
        runs = read_runs(client, list(found.values()), Path(folder))
        classes = class_rows(runs)
        counts = [image_counts(run.segments, classes["category_id"].tolist()) for run in runs]
        counts = on_the_same_images(counts)
        differences = {
            run.name: quality_differences(counts[0], count, classes)
            for run, count in zip(runs[1:], counts[1:], strict=True)
        }
        parameters = differing_parameters(runs)
        local = LocalData.of(validation_file, converted, runs[0].validation)
        qualities = [image_scores(run.segments).reindex(counts[0].images).to_numpy() for run in runs]
        pictures = pictures_of_differences(runs, counts[0].images, qualities, local, PICTURED_IMAGES)
        page = comparison_page(runs, differences, parameters, pictures)
    write_bytes(output / "comparison.html", page.encode())
    write_bytes(output / "parameters.csv", parameters.to_csv(index=False).encode())
    named = [table.assign(run=name) for name, table in differences.items()]
    write_bytes(output / "quality.csv", pd.concat(named).to_csv(index=False).encode())
    return output / "comparison.html"


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
    """Give the parameters that are not the same in all runs: ``parameter``, and a column a run ("" for none)."""
    names = sorted({name for run in runs for name in run.parameters})
    rows = [[name, *(run.parameters.get(name, "") for run in runs)] for name in names]
    return pd.DataFrame(
        [row for row in rows if len(set(row[1:])) > 1], columns=["parameter", *(run.name for run in runs)]
    )
