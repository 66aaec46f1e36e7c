"""Wiring of the choice of images to annotate next; not part of the main job."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.annotate_next import nodes

PARAMETERS = ["params:annotate_next", "params:prediction"]


def create_pipeline(**_: Any) -> Pipeline:
    """Predict photographs, rank them, and hand the best on with the model's segments, for CVAT and to look at."""
    return Pipeline(
        [
            Node(
                nodes.predict,
                inputs=["mask_head.best", *PARAMETERS],
                outputs="annotate_next.panoptic_predictions",
                name="predict_photographs",
            ),
            Node(
                nodes.rank,
                inputs=[
                    "mask_head.best",
                    "annotate_next.panoptic_predictions",
                    "panoptic_train",
                    "converted_images",
                    *PARAMETERS,
                ],
                outputs="annotate_next_ranking",
                name="rank_photographs",
            ),
            Node(
                nodes.choose,
                inputs=["mask_head.best", "annotate_next.panoptic_predictions", "annotate_next_ranking", *PARAMETERS],
                outputs="annotate_next_chosen",
                name="write_the_best_for_cvat",
            ),
            Node(
                nodes.draw,
                inputs=["annotate_next_ranking", "annotate_next_chosen", "params:annotate_next"],
                outputs="annotate_next_sheet",
                name="draw_the_best",
            ),
        ]
    )
