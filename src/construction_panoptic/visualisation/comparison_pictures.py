"""Pictures of the images in which runs differ most."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.visualisation.classes import ClassTable
from construction_panoptic.visualisation.comparison_report import ComparedRun
from construction_panoptic.visualisation.overlays import Picture, panoptic_overlay
from construction_panoptic.visualisation.page import PICTURE_SIDE, ReportPicture


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
