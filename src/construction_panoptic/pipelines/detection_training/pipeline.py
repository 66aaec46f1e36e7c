"""The first stage: DETR learns boxes."""

from typing import Any

from kedro.pipeline import Pipeline

from construction_panoptic.pipelines.detection_training import nodes
from construction_panoptic.pipelines.stage import stage_pipeline


def create_pipeline(**_: Any) -> Pipeline:
    """Train the detector and report."""
    inputs = ["detection_train", "detection_val", "converted_images", "params:model", "params:detection"]
    return stage_pipeline("detection", "detector", nodes.train_detector, inputs)
