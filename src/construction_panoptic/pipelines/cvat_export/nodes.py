"""Nodes that give ground truth and predictions back to CVAT."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.formats.cvat_export import cvat_files
from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.conversion import CvatExportSettings
from construction_panoptic.evaluation.predictions import read_results


def export_ground_truth(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    parameters: CvatExportSettings,
) -> Iterator[tuple[str, bytes]]:
    """Give path and content of each file of a CVAT export of the ground truth's things, train and val."""
    both = {name: list(chain(panoptic_train[name], panoptic_val[name])) for name in ("images", "annotations")}
    panoptic = {**both, "categories": panoptic_train["categories"]}
    return cvat_files(panoptic, converted.png_folder, converted.image_folder, shapes=parameters.shapes)


def export_predictions(
    predictions: Path, converted: ConvertedImages, parameters: CvatExportSettings
) -> Iterator[tuple[str, bytes]]:
    """Give path and content of each file of a CVAT export of the predicted things."""
    return cvat_files(read_results(predictions), predictions, converted.image_folder, shapes=parameters.shapes)
