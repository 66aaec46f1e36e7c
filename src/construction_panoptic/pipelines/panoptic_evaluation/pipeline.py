"""Wiring of the evaluation: predictions, PQ, AP, charts and examples."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.panoptic_evaluation import nodes

COMPARED = ["panoptic_val", "converted_images", "panoptic_predictions", "params:panoptic_evaluation"]
PRECISION = ["average_precision", "average_precision_table"]
QUALITY = ["panoptic_quality", "panoptic_quality_table"]
# One node for each layer: Kedro-Viz shows layers only if no node leads back to an earlier one.
KEPT = {"predictions": ["panoptic_predictions", "box_predictions"], "results": [*QUALITY, *PRECISION, "example_sheet"]}


def create_pipeline(**_: Any) -> Pipeline:
    """Predict the validation images, measure, and draw."""
    return Pipeline(
        [
            Node(
                nodes.predict_validation,
                inputs=["best_model", "panoptic_val", "converted_images", "params:panoptic_evaluation"],
                outputs="panoptic_predictions",
                name="predict_validation_images",
            ),
            Node(
                nodes.collect_boxes,
                inputs="panoptic_predictions",
                outputs="box_predictions",
                name="collect_predicted_boxes",
            ),
            Node(
                nodes.measure_precision,
                inputs=["detection_val", "box_predictions", "params:panoptic_evaluation"],
                outputs=PRECISION,
                name="measure_average_precision",
            ),
            Node(nodes.measure_quality, inputs=COMPARED, outputs=QUALITY, name="measure_panoptic_quality"),
            Node(nodes.draw_examples, inputs=COMPARED, outputs="example_sheet", name="draw_examples"),
            *(
                Node(
                    nodes.keep_results,
                    inputs=names,
                    outputs=[f"detr.{name}" for name in names],
                    name=f"keep_{what}_of_the_recipe",
                )
                for what, names in KEPT.items()
            ),
        ],
        inputs={"best_model": "mask_head.best"},
    )
