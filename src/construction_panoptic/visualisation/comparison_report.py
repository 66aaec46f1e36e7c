"""The comparison as an HTML page, and pictures of the images in which runs differ most."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.evaluation.quality import SPLITS
from construction_panoptic.visualisation.overlays import ClassTable, panoptic_overlay
from construction_panoptic.visualisation.page import PICTURE_SIDE, ReportPicture, about, render

NUMBERS = ("PQ/All", "PQ/Things", "PQ/Stuff", "SQ/All", "RQ/All", "box/AP", "box/AP50")


@dataclass(frozen=True)
class ComparedRun:
    """A run, as far as it is compared."""

    run_id: str
    name: str  # with its id where others of those compared have the same
    parameters: dict[str, str]  # by dotted path, of the run and of the trainings whose model it evaluates
    metrics: dict[str, float]
    tags: dict[str, str]
    date: str  # when it began
    validation: str  # digest of the validation set
    classes: pd.DataFrame  # columns ``category_id``, ``name``, ``kind``
    segments: pd.DataFrame  # a row a segment, see `evaluation.segments.match_segments`
    predictions: Path | None  # zipped


def comparison_page(
    runs: Sequence[ComparedRun],
    differences: Mapping[str, pd.DataFrame],
    parameters: pd.DataFrame,
    pictures: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the page that compares runs with the first of them.

    ``differences`` is what `quality_differences` gives, by name of each other run; ``parameters`` those that differ, a
    column a run; ``pictures`` truth and predictions of an image, by file name.
    """
    images = pd.concat([run.segments["image_id"] for run in runs]).nunique()
    names = ", ".join(run.name for run in runs)
    numbers = [name for name in NUMBERS if any(name in run.metrics for run in runs)]
    return render(
        "comparison.html.j2",
        title="Comparison of runs",
        about=about(run=names, images=f"{images:,} validation images", digest=runs[0].validation),
        run_head=["run", "model", *numbers, "date", "commit", "device", "id"],
        runs=[_described(run, numbers) for run in runs],
        first=runs[0].name,
        others={name: _compared(rows) for name, rows in differences.items()},
        parameters=parameters,
        pictures=pictures,
    )


def _described(run: ComparedRun, numbers: Sequence[str]) -> list[str]:
    # The trainings that the model comes from, with their best epochs if the run has trained.
    best = {name.partition("/")[0]: epoch for name, epoch in run.metrics.items() if name.endswith("/best/epoch")}
    stages = {name.removesuffix("_run"): "" for name in run.tags if name.endswith("_run")}
    trained = stages | {stage: f", epoch {epoch:g}" for stage, epoch in best.items()}
    return [
        run.name,
        "; ".join(stage + epoch for stage, epoch in sorted(trained.items())),
        *(_percent(run.metrics.get(name, math.nan)) for name in numbers),
        run.date,
        run.tags.get("git_commit", "")[:8] + (" +" if run.tags.get("git_dirty") == "true" else ""),
        run.tags.get("device", ""),
        run.run_id,
    ]


def _compared(rows: pd.DataFrame) -> dict[str, Any]:
    """Sort All, Things, Stuff, then the classes by how much they differ; those without a difference apart."""
    known = rows.dropna(subset=["difference"])
    order = known["difference"].abs().where(known.index >= len(SPLITS), 2).sort_values(ascending=False, kind="stable")
    only = rows["difference"].isna() & (rows["one"].notna() | rows["other"].notna())
    return {
        "total": rows.iloc[0],
        "rows": known.loc[order.index],
        "limit": max(0.01, known[["low", "high", "difference"]].abs().to_numpy().max(initial=0.0)),
        "only": rows["name"][only].tolist(),
    }


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


@dataclass(frozen=True)
class Validation:
    """The project's own validation set: COCO panoptic, the folder of its PNGs, and that of its images."""

    file: Path
    png_folder: Path
    image_folder: Path

    @cached_property
    def truth(self) -> dict[str, Any]:
        """What is in the file."""
        truth: dict[str, Any] = json.loads(self.file.read_bytes())
        return truth


def pictures_of_differences(
    runs: Sequence[ComparedRun],
    images: NDArray[np.int64],
    qualities: Sequence[NDArray[np.float64]],
    local: Validation | None,
    count: int,
) -> dict[str, list[ReportPicture]]:
    """Draw photograph, truth and predictions of the ``count`` images whose PQ differs most, by file name.

    ``images`` are ids, ``qualities`` for each run PQ of each image, 0…1 or NaN. Gives none without local data, or where
    a run has no predictions.
    """
    if local is None or any(run.predictions is None for run in runs):
        return {}
    spread = np.nan_to_num(np.max(qualities, axis=0) - np.min(qualities, axis=0))
    classes = ClassTable.from_categories(local.truth["categories"])
    files = {image["id"]: image["file_name"] for image in local.truth["images"]}
    truth = {annotation["image_id"]: annotation for annotation in local.truth["annotations"]}
    drawn: dict[str, list[ReportPicture]] = {}
    with ExitStack() as stack:
        archives = [stack.enter_context(ZipFile(run.predictions)) for run in runs if run.predictions is not None]
        results = [json.loads(archive.read(PREDICTIONS_FILE))["annotations"] for archive in archives]
        predicted = [{annotation["image_id"]: annotation for annotation in result} for result in results]
        for place in np.argsort(-spread, kind="stable")[:count]:
            if spread[place] == 0:
                break
            image_id = int(images[place])
            true = truth[image_id]
            found = [("ground truth", true, (local.png_folder / true["file_name"]).read_bytes())]
            for run, quality, archive, annotations in zip(runs, qualities, archives, predicted, strict=True):
                own = annotations[image_id]
                found.append((f"{run.name}, PQ {100 * quality[place]:.1f}", own, archive.read(own["file_name"])))
            photograph = read_rgb(local.image_folder / files[image_id])
            drawn[files[image_id]] = [(photograph, "image")]
            for caption, annotation, png in found:
                ids, segments = decode_id_map(png), annotation["segments_info"]
                overlay = panoptic_overlay(photograph, ids, segments, classes, max_side=PICTURE_SIDE)
                drawn[files[image_id]].append((overlay, caption))
    return drawn
