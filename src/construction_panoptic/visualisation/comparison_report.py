"""The comparison as an HTML page, and pictures of the images in which runs differ most."""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.differences import SPLITS
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.visualisation.overlays import ClassTable, Picture, display_name, panoptic_overlay
from construction_panoptic.visualisation.page import PICTURE_SIDE, Markup, ReportPicture, about, html_page, sheet, table

NUMBERS = ("pq/All", "pq/Things", "pq/Stuff", "sq/All", "rq/All", "box/AP", "box/AP50")
BETTER, WORSE, UNSURE = "#2a8a4a", "#c23b3b", "#888"


@dataclass(frozen=True)
class ComparedRun:
    """A run, as far as it is compared.

    Attributes:
        run_id: its id.
        name: its name; with its id where others of those compared have the same.
        parameters: by dotted path, of the run and of the trainings whose model it evaluates.
        metrics: its final numbers.
        tags: its tags.
        date: when it began.
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
    date: str
    validation: str
    classes: pd.DataFrame
    segments: pd.DataFrame
    predictions: Path | None


def comparison_page(
    runs: Sequence[ComparedRun],
    differences: Mapping[str, pd.DataFrame],
    parameters: pd.DataFrame,
    pictures: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the page.

    Args:
        runs: the runs; the first is what the others are compared with.
        differences: by name of each other run, what `differences.quality_differences` gives.
        parameters: the parameters that differ, a column a run.
        pictures: by file name, truth and predictions of an image.
    """
    first = runs[0].name
    parts = ["<h2>Runs</h2>", _runs(runs)]
    for name, rows in differences.items():
        parts += [f"<h2>{escape(name)} against {escape(first)}</h2>", _verdict(rows), _differences(rows, first, name)]
    parts.append("<h2>Parameters that differ</h2>")
    listed = table([str(name) for name in parameters.columns], parameters.astype(str).to_numpy().tolist())
    parts.append(listed if len(parameters) else "<p>None.</p>")
    parts.append("<h2>Images that differ most</h2>")
    parts += [f"<h3>{escape(name)}</h3>{sheet(row)}" for name, row in pictures.items()]
    if not pictures:
        parts.append(
            "<p>No pictures: they take the validation set of the runs in this project, and the predictions of all runs "
            "in MLflow; or no image differs.</p>"
        )
    compared = pd.concat([run.segments["image_id"] for run in runs]).nunique()
    said = about(
        run=", ".join(run.name for run in runs), images=f"{compared:,} validation images", digest=runs[0].validation
    )
    return html_page("Comparison of runs", said, parts)


def _runs(runs: Sequence[ComparedRun]) -> str:
    numbers = [name for name in NUMBERS if any(name in run.metrics for run in runs)]
    head = ["run", "model", *numbers, "date", "commit", "device", "id"]
    rows = [
        [
            run.name,
            _model(run),
            *(_percent(run.metrics.get(name, math.nan)) for name in numbers),
            run.date,
            run.tags.get("git_commit", "")[:8] + (" +" if run.tags.get("git_dirty") == "true" else ""),
            run.tags.get("device", ""),
            run.run_id,
        ]
        for run in runs
    ]
    note = "<p>In percent. A + after the commit: with changes that are not committed.</p>"
    return table(head, rows) + note


def _model(run: ComparedRun) -> str:
    """Name the trainings that the model comes from, with their best epochs if the run has trained."""
    best = {name.partition("/")[0]: epoch for name, epoch in run.metrics.items() if name.endswith("/best/epoch")}
    stages = {name.removesuffix("_run"): "" for name in run.tags if name.endswith("_run")}
    trained = stages | {stage: f", epoch {epoch:g}" for stage, epoch in best.items()}
    return "; ".join(stage + epoch for stage, epoch in sorted(trained.items()))


def _verdict(rows: pd.DataFrame) -> str:
    total = rows[rows["name"] == "All"].iloc[0]
    text = (
        f"PQ {_signed(total['difference'])} points, 95 % interval {_signed(total['low'])} to {_signed(total['high'])}"
    )
    if total["low"] > 0:
        return f"<p><b>Better</b>: {text}.</p>"
    if total["high"] < 0:
        return f"<p><b>Worse</b>: {text}.</p>"
    return f"<p><b>Not told apart</b> by these images: {text}.</p>"


def _differences(rows: pd.DataFrame, first: str, other: str) -> str:
    known = rows.dropna(subset=["difference"])
    order = known["difference"].abs().where(known.index >= len(SPLITS), 2).sort_values(ascending=False, kind="stable")
    known = known.loc[order.index]
    limit = max(0.01, known[["low", "high", "difference"]].abs().to_numpy().max(initial=0.0))
    cells = [
        [
            Markup(f"<b>{row['name']}</b>") if place < len(SPLITS) else display_name(row["name"]),
            str(row["images"]),
            _percent(row["one"]),
            _percent(row["other"]),
            _signed(row["difference"]),
            f"{_signed(row['low'])} … {_signed(row['high'])}",
            _interval(row["difference"], row["low"], row["high"], limit),
        ]
        for place, row in zip(known.index.tolist(), known.to_dict("records"), strict=True)
    ]
    only = rows[rows["difference"].isna() & (rows["one"].notna() | rows["other"].notna())]["name"]
    note = "<p>PQ in percent; the interval says where the difference would lie on other images like these.</p>"
    if len(only):
        names = ", ".join(display_name(name) for name in only)
        note += f"<p>Predicted by one of the two only, and not in the truth: {escape(names)}.</p>"
    return table(["class", "images", first, other, "difference", "95 % interval", ""], cells) + note


def _interval(difference: float, low: float, high: float, limit: float) -> Markup:
    """Draw an interval on a scale from -limit to limit."""
    color = BETTER if low > 0 else WORSE if high < 0 else UNSURE
    left, middle, right = (100 + 96 * value / limit for value in (low, difference, high))
    return Markup(
        f'<svg viewBox="0 0 200 16" style="width:12rem" role="img"><path d="M100 0V16" stroke="#8888"/>'
        f'<path d="M{left:.1f} 8H{right:.1f}" stroke="{color}" stroke-width="3"/>'
        f'<circle cx="{middle:.1f}" cy="8" r="4.5" fill="{color}"/></svg>'
    )


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


@dataclass(frozen=True)
class LocalData:
    """The validation set that the runs were evaluated on: COCO panoptic, and the folders of its PNGs and images."""

    truth: Mapping[str, Any]
    png_folder: Path
    image_folder: Path


def pictures_of_differences(
    runs: Sequence[ComparedRun],
    images: NDArray[np.int64],
    qualities: Sequence[NDArray[np.float64]],
    local: LocalData | None,
    count: int,
) -> dict[str, list[ReportPicture]]:
    """Draw truth and predictions of the images whose PQ differs most between the runs, most first.

    Args:
        runs: the runs.
        images: ids of the images.
        qualities: for each run, PQ of each image, 0…1 or NaN.
        local: images and truth.
        count: how many.

    Returns:
        By file name; empty without local data, or where a run has no predictions.
    """
    if local is None or any(run.predictions is None for run in runs):
        return {}
    spread = np.nan_to_num(np.max(qualities, axis=0) - np.min(qualities, axis=0))
    chosen = [place for place in np.argsort(-spread, kind="stable")[:count] if spread[place] > 0]
    classes = ClassTable.from_categories(local.truth["categories"])
    files = {image["id"]: image["file_name"] for image in local.truth["images"]}
    truth = {annotation["image_id"]: annotation for annotation in local.truth["annotations"]}
    drawn: dict[str, list[ReportPicture]] = {}
    archives = [zipfile.ZipFile(run.predictions) for run in runs if run.predictions is not None]
    try:
        predicted = [_annotations(archive) for archive in archives]
        for place in chosen:
            image_id = int(images[place])
            photograph = read_rgb(local.image_folder / files[image_id])
            png = (local.png_folder / truth[image_id]["file_name"]).read_bytes()
            row = [ReportPicture(_overlay(photograph, png, truth[image_id], classes), "ground truth")]
            for run, quality, archive, annotations in zip(runs, qualities, archives, predicted, strict=True):
                annotation = annotations[image_id]
                overlay = _overlay(photograph, archive.read(annotation["file_name"]), annotation, classes)
                row.append(ReportPicture(overlay, f"{run.name}, PQ {100 * quality[place]:.1f}"))
            drawn[files[image_id]] = row
    finally:
        for archive in archives:
            archive.close()
    return drawn


def _annotations(archive: zipfile.ZipFile) -> dict[int, dict[str, Any]]:
    with archive.open(PREDICTIONS_FILE) as file:
        return {annotation["image_id"]: annotation for annotation in json.load(io.TextIOWrapper(file))["annotations"]}


def _overlay(photograph: Picture, png: bytes, annotation: Mapping[str, Any], classes: ClassTable) -> Picture:
    id_map, segments = decode_id_map(png), annotation["segments_info"]
    return panoptic_overlay(photograph, id_map, segments, classes, max_side=PICTURE_SIDE)
