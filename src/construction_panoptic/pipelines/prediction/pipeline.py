"""Wiring of the prediction; not part of the main job."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.prediction import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Predict a source and list what was seen."""
    return Pipeline(
        [
            Node(
                nodes.predict,
                inputs=["mask_head.best", "params:prediction"],
                outputs="prediction_results",
                name="predict_images_and_videos",
            ),
            Node(
                nodes.tabulate,
                inputs="prediction_results",
                outputs=["prediction_seen", "prediction_rejected"],
                name="list_what_was_seen",
            ),
        ]
    )
