"""The second stage: the mask head learns, the detector is frozen."""

from typing import Any

from kedro.pipeline import Pipeline

from construction_panoptic.pipelines.mask_head_training import nodes
from construction_panoptic.pipelines.stage import stage_pipeline


def create_pipeline(**_: Any) -> Pipeline:
    """Train the mask head and report."""
    data = ["panoptic_train", "panoptic_val", "converted_images", "detection.best"]
    parameters = ["params:model", "params:mask_head", "params:panoptic_evaluation"]
    return stage_pipeline("mask_head", "mask_head", nodes.train_mask_head, [*data, *parameters])
