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
                    "detection.best",
                    "params:model",
                    "params:mask_head",
                    "params:panoptic_evaluation",
                    "mask_head.resume_from",
                ],
                outputs=["mask_head.best", "mask_head.history", "mask_head.checkpoint"],
                name="train_mask_head",
            ),
            Node(
                nodes.draw_curves,
                inputs="mask_head.history",
                outputs=["mask_head.curves", "mask_head.curves_picture"],
                name="draw_mask_head_curves",
            ),
        ]
    )
