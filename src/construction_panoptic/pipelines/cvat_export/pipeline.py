"""Wiring of the way back to CVAT."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.cvat_export import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Write ground truth and predictions as CVAT exports; ``--to-outputs`` chooses one of them."""
    return Pipeline(
        [
            Node(
                nodes.export_ground_truth,
                inputs=["panoptic_train", "panoptic_val", "converted_images", "params:cvat_export"],
                outputs="cvat_ground_truth",
                name="export_ground_truth_to_cvat",
            ),
            Node(
                nodes.export_predictions,
                inputs=["detr.panoptic_predictions", "converted_images", "params:cvat_export"],
                outputs="cvat_predictions",
                name="export_predictions_to_cvat",
            ),
        ]
    )
