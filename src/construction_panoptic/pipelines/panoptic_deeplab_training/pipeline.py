"""Wiring of the second recipe's only stage."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.panoptic_deeplab_training import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Train Panoptic-DeepLab and draw its curves."""
    return Pipeline(
        [
            Node(
                nodes.train_panoptic_deeplab,
                inputs=[
                    "panoptic_train",
                    "panoptic_val",
                    "converted_images",
                    "params:panoptic_deeplab",
                    "params:panoptic_evaluation",
                    "resume_from",
                ],
                outputs=["best", "history", "timings", "progress", "checkpoint"],
                name="train_panoptic_deeplab",
            ),
            Node(
                nodes.draw_curves,
                inputs="history",
                outputs=["curves", "curves_picture"],
                name="draw_panoptic_deeplab_curves",
            ),
        ],
        namespace="panoptic_deeplab",
        inputs={"panoptic_train", "panoptic_val", "converted_images"},
        parameters={"params:panoptic_deeplab", "params:panoptic_evaluation"},
    )
