"""Wiring of the error analysis: what the model does wrong, and the evaluation report."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.error_analysis import nodes

# The recipe's own results: those without its name are of the recipe evaluated last.
COMPARED = ["panoptic_val", "converted_images", "detr.panoptic_predictions", "params:panoptic_evaluation"]
MEASURED = ["best_model", "detr.panoptic_quality", "detr.average_precision", "segment_matches"]
SHOWN = ["detr.example_sheet", "detr.panoptic_quality_table", "detr.average_precision_table"]
ERRORS = ["pq_loss_budget", "confusion_matrix", "size_quality", "calibration", "box_errors", "threshold_curve"]


def create_pipeline(**_: Any) -> Pipeline:
    """Match segments, split the loss of PQ, check scores and threshold, draw, and report."""
    return Pipeline(
        [
            Node(nodes.match_all_segments, COMPARED, "segment_matches", name="match_true_and_predicted_segments"),
            Node(
                nodes.analyse_segments,
                inputs=["segment_matches", "panoptic_val", "detr.average_precision"],
                outputs=["pq_loss_budget", "confusion_matrix", "size_quality"],
                name="say_what_costs_panoptic_quality",
            ),
            Node(
                nodes.analyse_scores,
                inputs=["detection_val", "detr.box_predictions", "segment_matches"],
                outputs=["calibration", "box_errors"],
                name="compare_scores_with_what_is_right",
            ),
            Node(
                nodes.try_thresholds,
                inputs=["best_model", "panoptic_train", "converted_images", "params:panoptic_evaluation"],
                outputs="threshold_curve",
                name="try_score_thresholds_on_training_images",
            ),
            Node(
                nodes.report_evaluation,
                inputs=[*MEASURED, *COMPARED, "params:run_name", *SHOWN, *ERRORS],
                outputs=["evaluation_report", "validation_images"],
                name="report_evaluation",
            ),
        ],
        inputs={"best_model": "mask_head.best"},
    )
