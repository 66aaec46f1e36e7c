"""Wiring of the first stage: DETR learns boxes."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.detection_training import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Train the detector and draw its curves."""
    return Pipeline(
        [
            Node(
                nodes.train_detector,
                inputs=[
                    "detection_train",
                    "detection_val",
                    "converted_images",
                    "params:model",
                    "params:detection",
                    "resume_from",
                ],
                outputs=["best", "history", "timings", "progress", "checkpoint"],
                name="train_detector",
            ),
            Node(
                nodes.draw_curves, inputs="history", outputs=["curves", "curves_picture"], name="draw_detector_curves"
            ),
        ],
        namespace="detection",
        inputs={"detection_train", "detection_val", "converted_images"},
        parameters={"params:model", "params:detection"},
    )
