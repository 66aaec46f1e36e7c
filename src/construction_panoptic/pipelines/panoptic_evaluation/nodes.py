"""Nodes that predict the validation images and measure how good the predictions are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.examples import some_images
from construction_panoptic.evaluation.inference import ImageFiles, predict_files
from construction_panoptic.evaluation.precision import PrecisionEngine, average_precision
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE, ImagePrediction, read_boxes, read_results
from construction_panoptic.evaluation.quality import QualityEngine, panoptic_quality
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.evaluation.tables import precision_table, quality_table
from construction_panoptic.models.files import model_of
from construction_panoptic.visualisation.examples import examples_of
from construction_panoptic.visualisation.overlays import ClassTable
from construction_panoptic.visualisation.sheets import example_sheet


def predict_validation(
    checkpoint: dict[str, Any], panoptic_val: dict[str, Any], converted: ConvertedImages, parameters: EvaluationSettings
) -> Iterable[ImagePrediction]:
    """Segment the validation images with the best model, one by one, at the sizes that its checkpoint says."""
    model = model_of(checkpoint, "the best checkpoint")
    files = ImageFiles(panoptic_val, converted.image_folder, model.prepare)
    return predict_files(model, files, parameters)


def measure_quality(
    panoptic_val: dict[str, Any], converted: ConvertedImages, predictions: Path, parameters: EvaluationSettings
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure PQ, SQ and RQ of all, things, stuff and each class."""
    given = panoptic_val, converted.png_folder, predictions / PREDICTIONS_FILE, predictions
    engine: QualityEngine = "hotcoco" if parameters.engine == "hotcoco" else "panopticapi"
    quality = panoptic_quality(*given, engine=engine, execution=parameters.execution)
    names = ClassTable.from_categories(panoptic_val["categories"]).names
    return quality, quality_table(quality, names)


def collect_boxes(predictions: Path) -> list[dict[str, Any]]:
    """Gather the boxes of all images as COCO box results."""
    return read_boxes(predictions)


def measure_precision(
    detection_val: dict[str, Any], boxes: list[dict[str, Any]], parameters: EvaluationSettings
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure COCO's 12 numbers of the boxes."""
    engine: PrecisionEngine = "hotcoco" if parameters.engine == "hotcoco" else "pycocotools"
    precision = average_precision(detection_val, boxes, engine=engine)
    return precision, precision_table(precision)


def draw_examples(
    panoptic_val: dict[str, Any], converted: ConvertedImages, predictions: Path, parameters: EvaluationSettings
) -> Image.Image:
    """Set image, ground truth and prediction of some validation images side by side."""
    chosen = some_images(panoptic_val, parameters.examples)
    segments = match_segments(chosen, converted.png_folder, read_results(predictions), predictions)
    scores = image_scores(segments)
    qualities = {image["id"]: scores.get(image["id"]) for image in chosen["images"]}
    folders = converted.image_folder, converted.png_folder
    return example_sheet(list(examples_of(qualities, chosen, folders, predictions)))


def keep_results(*results: Any) -> tuple[Any, ...]:
    """Save the results again beside those of other recipes; the originals are those of the recipe evaluated last."""
    return results
