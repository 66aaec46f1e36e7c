"""Nodes that say what the model does wrong, and set the evaluation report."""

from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from plotly import graph_objects as go

from construction_panoptic.catalog.folders import ConvertedImages
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
from construction_panoptic.visualisation.error_charts import (
    calibration_chart,
    confusion_chart,
    loss_budget_chart,
    threshold_chart,
)
from construction_panoptic.visualisation.evaluation_report import evaluation_report
from construction_panoptic.visualisation.examples import examples_of
from construction_panoptic.visualisation.page import ReportPicture
from construction_panoptic.visualisation.sheets import Example, example_sheet


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
    files = ImageFiles.of_coco(truth, converted.image_folder, model.prepare)
    return threshold_curve(
        model,
        build_loader(files, batch_size=parameters.batch_size, shuffle=False, workers=parameters.workers),
        truth,
        converted.png_folder,
        overrides=parameters.overrides,
        precision=parameters.precision,
    )


def draw_errors(
    budget: pd.DataFrame, confusions: pd.DataFrame, calibration: pd.DataFrame, thresholds: pd.DataFrame
) -> tuple[go.Figure, go.Figure, go.Figure, go.Figure]:
    """Draw the loss budget, the confusion matrix, the calibration and the effect of the threshold."""
    return (
        loss_budget_chart(budget),
        confusion_chart(confusions),
        calibration_chart(calibration),
        threshold_chart(thresholds, _in_use(thresholds)),
    )


def _in_use(thresholds: pd.DataFrame) -> float:
    return float(thresholds.loc[thresholds["in_use"], "threshold"].iloc[0])


def draw_worst_images(
    segments: pd.DataFrame,
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    predictions: Path,
    parameters: EvaluationSettings,
) -> Image.Image:
    """Set image, ground truth and prediction of the images with the lowest PQ side by side, worst first."""
    count = parameters.examples
    return example_sheet(_worst(segments, panoptic_val, converted, predictions, count))


def report_evaluation(
    quality: dict[str, Any],
    precision: dict[str, Any],
    budget: pd.DataFrame,
    confusions: pd.DataFrame,
    sizes: pd.DataFrame,
    calibration: pd.DataFrame,
    box_errors: pd.DataFrame,
    thresholds: pd.DataFrame,
    segments: pd.DataFrame,
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    predictions: Path,
    parameters: EvaluationSettings,
) -> str:
    """Set the evaluation report.

    Returns:
        An HTML page with its charts and pictures inside.
    """
    worst = _worst(segments, panoptic_val, converted, predictions, parameters.examples)
    pairs = [
        (
            ReportPicture(example.truth, f"{example.title}: ground truth"),
            ReportPicture(example.prediction, f"{example.title}: PQ {100 * (example.quality or 0):.1f}"),
        )
        for example in worst
        if example.truth is not None and example.prediction is not None
    ]
    return evaluation_report(
        quality, precision, budget, confusions, sizes, calibration, box_errors, thresholds, _in_use(thresholds), pairs
    )


def _worst(
    segments: pd.DataFrame, truth: dict[str, Any], converted: ConvertedImages, predictions: Path, count: int
) -> list[Example]:
    """Draw the images with the lowest PQ."""
    return examples_of(dict(image_scores(segments).head(count)), truth, converted, predictions)
