"""Nodes that say what the model does wrong, and set the evaluation report."""

from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.evaluation.analysis import confusion_matrix, image_scores, loss_budget, size_quality
from construction_panoptic.evaluation.calibration import box_analysis, calibration_table
from construction_panoptic.evaluation.examples import some_images
from construction_panoptic.evaluation.inference import ImageFiles, on_device
from construction_panoptic.evaluation.predictions import read_results
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.evaluation.thresholds import threshold_curve
from construction_panoptic.models.files import model_of
from construction_panoptic.training.loading import build_loader
from construction_panoptic.visualisation.examples import examples_of
from construction_panoptic.visualisation.page import about_model
from construction_panoptic.visualisation.reports import MOST_IMAGES, THUMBNAIL_SIDE, evaluation_report, validation_page


def match_all_segments(
    panoptic_val: dict[str, Any], converted: ConvertedImages, predictions: Path, parameters: EvaluationSettings
) -> pd.DataFrame:
    """Say of every true and predicted segment of the validation set what became of it."""
    execution = parameters.execution
    return match_segments(panoptic_val, converted.png_folder, read_results(predictions), predictions, execution)


def analyse_segments(
    segments: pd.DataFrame, panoptic_val: dict[str, Any], precision: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Say what costs PQ, which classes are confused, and how good small, medium and large segments are."""
    categories = panoptic_val["categories"]
    confusions = confusion_matrix(segments, categories)
    return loss_budget(segments, categories), confusions, size_quality(segments, categories, precision)


def analyse_scores(
    detection_val: dict[str, Any], boxes: list[dict[str, Any]], segments: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare scores with how many are right, and say what costs box AP."""
    calibration, errors = box_analysis(detection_val, boxes)
    return pd.concat([calibration, calibration_table(segments)], ignore_index=True), errors


def try_thresholds(
    checkpoint: dict[str, Any],
    panoptic_train: dict[str, Any],
    converted: ConvertedImages,
    parameters: EvaluationSettings,
) -> pd.DataFrame:
    """Measure PQ of some training images at several score thresholds."""
    truth = some_images(panoptic_train, parameters.threshold_images)
    model = on_device(model_of(checkpoint, "the best checkpoint"), parameters.device)
    files = ImageFiles(truth, converted.image_folder, model.prepare)
    loader = build_loader(files, batch_size=parameters.batch_size, shuffle=False, workers=parameters.workers)
    folder, precision = converted.png_folder, parameters.precision
    return threshold_curve(model, loader, truth, folder, overrides=parameters.overrides, precision=precision)


def report_evaluation(
    checkpoint: dict[str, Any],
    quality: dict[str, Any],
    precision: dict[str, Any],
    segments: pd.DataFrame,
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    predictions: Path,
    parameters: EvaluationSettings,
    run_name: str,
    sheet: Image.Image,
    *tables: pd.DataFrame,
) -> tuple[str, str]:
    """Set the evaluation report, and the page of all validation images.

    ``tables`` are what the other nodes have found, thresholds last.
    """
    said = about_model(f"{checkpoint['stage']}, epoch {checkpoint['epoch']}", run_name, panoptic_val)
    folders = (converted.image_folder, converted.png_folder)
    scores: dict[int, float | None] = dict(image_scores(segments))
    scores |= {image["id"]: None for image in panoptic_val["images"] if image["id"] not in scores}
    worst = dict(islice(scores.items(), parameters.examples))
    worst_drawn = list(examples_of(worst, panoptic_val, folders, predictions, segments))
    report = evaluation_report(said, quality, precision, sheet, worst_drawn, *tables)
    shown = dict(islice(scores.items(), MOST_IMAGES))
    drawn = examples_of(shown, panoptic_val, folders, predictions, segments, max_side=THUMBNAIL_SIDE)
    return report, validation_page(said, panoptic_val, segments, shown, drawn)
