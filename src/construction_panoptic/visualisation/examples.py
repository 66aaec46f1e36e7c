"""Images with their ground truth and their predictions, for sheets and reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.evaluation.predictions import read_results
from construction_panoptic.visualisation.classes import ClassTable, legend_entries
from construction_panoptic.visualisation.progress import overlay_of
from construction_panoptic.visualisation.sheets import Example


def examples_of(
    qualities: Mapping[int, float | None], truth: Mapping[str, Any], converted: ConvertedImages, predictions: Path
) -> list[Example]:
    """Draw images, their ground truth and their predictions.

    Args:
        qualities: PQ (0…1) of each image that is wanted, by its id, in the order that is wanted; None: it has none.
        truth: COCO panoptic file.
        converted: its images and PNGs.
        predictions: the folder of predictions.
    """
    classes = ClassTable.from_categories(truth["categories"])
    images = {image["id"]: image for image in truth["images"]}
    true, predicted = (
        {annotation["image_id"]: annotation for annotation in side["annotations"]}
        for side in (truth, read_results(predictions))
    )
    return [
        _example(images[i], true[i], predicted[i], quality, (converted, predictions), classes)
        for i, quality in qualities.items()
    ]


def _example(
    image: Mapping[str, Any],
    true: Mapping[str, Any],
    predicted: Mapping[str, Any],
    quality: float | None,
    folders: tuple[ConvertedImages, Path],
    classes: ClassTable,
) -> Example:
    converted, predictions = folders
    photograph, truth = overlay_of(converted.image_folder, converted.png_folder, image, true, classes)
    _, prediction = overlay_of(converted.image_folder, predictions, image, predicted, classes)
    legend = legend_entries([*true["segments_info"], *predicted["segments_info"]], classes)
    return Example(photograph, image["file_name"], truth, prediction, quality, legend)
