"""Nodes that predict the validation images and measure how good the predictions are."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from plotly import graph_objects as go

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.detr import build_detr_panoptic
from construction_panoptic.evaluation.examples import choose_images, image_quality
from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.predicting import ImagePrediction, predict_images, read_boxes
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.settings import EvaluationSettings
from construction_panoptic.evaluation.tables import precision_table, quality_table, summary_table
from construction_panoptic.pipelines.pictures import overlay_of
from construction_panoptic.pipelines.training_run import class_count
from construction_panoptic.training.device import resolve_device
from construction_panoptic.training.loading import build_loader
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.settings import MaskHeadSettings, ModelSettings, parse
from construction_panoptic.visualisation.charts import pq_chart
from construction_panoptic.visualisation.classes import ClassTable, legend_entries
from construction_panoptic.visualisation.figures import pq_figure
from construction_panoptic.visualisation.sheets import Example, example_sheet


def predict_validation(
    checkpoint: dict[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    model_parameters: dict[str, Any],
    mask_head_parameters: dict[str, Any],
    parameters: dict[str, Any],
) -> Iterable[ImagePrediction]:
    """Segment the validation images with the best model.

    Returns:
        A prediction for each image, computed as it is asked for.
    """
    settings = parse(EvaluationSettings, parameters, "panoptic_evaluation")
    architecture = parse(ModelSettings, model_parameters, "model")
    augmentation = parse(MaskHeadSettings, mask_head_parameters, "mask_head").augmentation
    model = build_detr_panoptic(class_count(panoptic_val), **architecture.model_dump())
    model.load_state_dict(checkpoint["model"])
    device = resolve_device(settings.device)
    samples = PanopticSamples(panoptic_val, converted.image_folder, converted.png_folder, augmentation)
    loader = build_loader(samples, batch_size=settings.batch_size, shuffle=False, workers=settings.workers)
    return predict_images(
        model.to(device),
        loader,
        categories=panoptic_val["categories"],
        threshold=settings.threshold,
        device=device,
        precision=settings.precision,
    )


def collect_boxes(predictions: Path) -> list[dict[str, Any]]:
    """Gather the boxes of all images as COCO box results."""
    return read_boxes(predictions)


def measure_quality(
    panoptic_val: dict[str, Any], converted: ConvertedImages, predictions: Path, parameters: dict[str, Any]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure PQ, SQ and RQ of all, things, stuff and each class."""
    settings = parse(EvaluationSettings, parameters, "panoptic_evaluation")
    quality = panoptic_quality(
        panoptic_val,
        converted.png_folder,
        predictions / "predictions.json",
        predictions,
        engine=settings.quality_engine,
    )
    names = ClassTable.from_categories(panoptic_val["categories"]).names
    summary = summary_table(quality).rename(columns={"split": "name"}).drop(columns="n")
    classes = quality_table(quality, names)
    return quality, pd.concat([summary, classes[classes["present"]]], ignore_index=True)


def measure_precision(
    detection_val: dict[str, Any], boxes: list[dict[str, Any]], parameters: dict[str, Any]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure COCO's 12 numbers of the boxes."""
    settings = parse(EvaluationSettings, parameters, "panoptic_evaluation")
    precision = average_precision(detection_val, boxes, engine=settings.precision_engine)
    return precision, precision_table(precision).rename(columns={"value": "box"})


def draw_quality(quality: dict[str, Any], panoptic_val: dict[str, Any]) -> tuple[go.Figure, Figure]:
    """Draw the PQ of each class; a class that is absent from the validation set stays blank."""
    classes = ClassTable.from_categories(panoptic_val["categories"])
    return pq_chart(quality, classes), pq_figure(quality, classes)


def draw_examples(
    panoptic_val: dict[str, Any], converted: ConvertedImages, predictions: Path, parameters: dict[str, Any]
) -> Image.Image:
    """Set image, ground truth and prediction of some validation images side by side."""
    settings = parse(EvaluationSettings, parameters, "panoptic_evaluation")
    classes = ClassTable.from_categories(panoptic_val["categories"])
    results = json.loads((predictions / "predictions.json").read_text())
    images = choose_images(panoptic_val, settings.examples)
    rows = image_quality(panoptic_val, converted.png_folder, results, predictions, images)
    examples = []
    for image, (true, predicted, quality) in zip(images, rows, strict=True):
        photograph, truth = overlay_of(converted.image_folder, converted.png_folder, image, true, classes)
        _, prediction = overlay_of(converted.image_folder, predictions, image, predicted, classes)
        segments = [*true["segments_info"], *predicted["segments_info"]]
        examples.append(
            Example(
                photograph,
                image["file_name"],
                truth,
                prediction,
                quality,
                legend_entries(segments, classes),
            )
        )
    return example_sheet(examples)
