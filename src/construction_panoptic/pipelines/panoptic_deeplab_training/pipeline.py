"""The second recipe's only stage."""

from typing import Any

from kedro.pipeline import Pipeline

from construction_panoptic.pipelines.panoptic_deeplab_training import nodes
from construction_panoptic.pipelines.stage import stage_pipeline


def create_pipeline(**_: Any) -> Pipeline:
    """Train Panoptic-DeepLab and report."""
    data = ["panoptic_train", "panoptic_val", "converted_images"]
    parameters = ["params:panoptic_deeplab", "params:panoptic_evaluation"]
    name = "panoptic_deeplab"
    return stage_pipeline(name, name, nodes.train_panoptic_deeplab, [*data, *parameters])
