"""Wiring of the second stage: the mask head learns, the detector is frozen."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.mask_head_training import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Train the mask head and draw its curves."""
    return Pipeline(
        [
            Node(
                nodes.train_mask_head,
                inputs=[
                    "panoptic_train",
                    "panoptic_val",
                    "converted_images",
                    "detector",
                    "params:model",
                    "params:mask_head",
                    "params:panoptic_evaluation",
                    "resume_from",
                ],
                outputs=["best", "history", "timings", "progress", "checkpoint"],
                name="train_mask_head",
            ),
            Node(
                nodes.draw_curves, inputs="history", outputs=["curves", "curves_picture"], name="draw_mask_head_curves"
            ),
        ],
        namespace="mask_head",
        inputs={
            "panoptic_train": "panoptic_train",
            "panoptic_val": "panoptic_val",
            "converted_images": "converted_images",
            "detector": "detection.best",
        },
        parameters={"params:model", "params:mask_head", "params:panoptic_evaluation"},
    )
