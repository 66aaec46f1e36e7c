"""What the nodes that evaluate the trained model have in common."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE
from construction_panoptic.models.detr import DetrPanoptic, build_detr_panoptic
from construction_panoptic.training.running import class_count
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.visualisation.classes import ClassTable, legend_entries
from construction_panoptic.visualisation.progress import overlay_of
from construction_panoptic.visualisation.sheets import Example


def model_and_samples(
    checkpoint: Mapping[str, Any],
    data: dict[str, Any],
    converted: ConvertedImages,
    model_parameters: dict[str, Any],
    mask_head_parameters: dict[str, Any],
) -> tuple[DetrPanoptic, PanopticSamples]:
    """Give the trained model and the images of a COCO panoptic file."""
    architecture = parse(DetrSettings, model_parameters, "model")
    augmentation = parse(MaskHeadSettings, mask_head_parameters, "mask_head").augmentation
    model = build_detr_panoptic(class_count(data), **architecture.model_dump())
    model.load_state_dict(checkpoint["model"])
    return model, PanopticSamples(data, converted.image_folder, converted.png_folder, augmentation)


def read_results(predictions: Path) -> dict[str, Any]:
    """Read the COCO panoptic results of a folder of predictions."""
    results: dict[str, Any] = json.loads((predictions / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    return results


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
