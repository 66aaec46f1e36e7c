"""Choosing images to look at, with the quality of each."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.evaluation.quality import panoptic_quality


def choose_images(truth: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Choose images spread evenly over a COCO file, in the order of their names: no class and no result is favoured."""
    images = sorted(truth["images"], key=lambda image: image["file_name"])
    count = min(count, len(images))
    return [images[(2 * number + 1) * len(images) // (2 * count)] for number in range(count)]


def image_quality(
    truth: Mapping[str, Any],
    truth_folder: Path,
    predictions: Mapping[str, Any],
    prediction_folder: Path,
    images: list[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], dict[str, Any], float | None]]:
    """Measure PQ image by image.

    Yields:
        For each image: its annotation in the truth, its annotation in the predictions, and the mean PQ of the classes
        that occur in either (0…1; None if neither has a segment).
    """
    true = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    predicted = {annotation["image_id"]: annotation for annotation in predictions["annotations"]}
    for image in images:
        identity = image["id"]
        quality = panoptic_quality(
            {**truth, "images": [image], "annotations": [true[identity]]},
            truth_folder,
            {**predictions, "annotations": [predicted[identity]]},
            prediction_folder,
        )
        yield true[identity], predicted[identity], quality["All"]["pq"]
