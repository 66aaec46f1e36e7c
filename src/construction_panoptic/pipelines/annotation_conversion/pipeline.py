"""Wiring of the conversion: CVAT exports in, COCO panoptic and detection files out."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.annotation_conversion import nodes

_PARAMETERS = "params:annotation_conversion"


def create_pipeline(**_: Any) -> Pipeline:
    """Read and check exports, label stuff, merge, split, write, and describe the data set."""
    raw = ["raw_images", "raw_annotations"]
    counted = ["converted_images", "split", "raw_annotations", "rejected_records", "repaired_records", "stuff_labels"]
    reported = ["converted_images", "raw_annotations", "rejected_records", "class_counts", "dataset_summary"]
    shown = ["split_audit", "ground_truth_mosaic"]
    return Pipeline(
        [
            Node(
                nodes.read_annotations,
                inputs=["raw_data", "taxonomy", _PARAMETERS],
                outputs=[*raw, "rejected_while_reading", "repaired_while_reading"],
                name="read_and_check_exports",
            ),
            Node(
                nodes.label_stuff,
                inputs=[*raw, "stuff_predictions", "taxonomy", _PARAMETERS],
                outputs="stuff_labels",
                name="label_stuff",
            ),
            Node(
                nodes.merge_annotations,
                inputs=[*raw, "stuff_labels", "taxonomy", _PARAMETERS],
                outputs="converted_images",
                name="merge_things_over_stuff",
            ),
            Node(
                nodes.account_for_records,
                inputs=[*raw, "rejected_while_reading", "repaired_while_reading", "converted_images"],
                outputs=["rejected_records", "repaired_records"],
                name="list_rejected_and_repaired_records",
            ),
            Node(
                nodes.split_images,
                inputs=["converted_images", _PARAMETERS],
                outputs="split",
                name="split_by_image_groups",
            ),
            Node(
                nodes.write_coco,
                inputs=["converted_images", "split", "taxonomy"],
                outputs=["detection_train", "detection_val", "panoptic_train", "panoptic_val"],
                name="check_and_write_coco_files",
            ),
            Node(
                nodes.audit_and_count,
                inputs=[*counted, "taxonomy", _PARAMETERS],
                outputs=["split_audit", "class_counts", "dataset_summary"],
                name="audit_split_and_count_classes",
            ),
            Node(
                nodes.draw_ground_truth,
                inputs=["panoptic_train", "converted_images"],
                outputs="ground_truth_mosaic",
                name="draw_ground_truth",
            ),
            Node(
                nodes.report_data,
                inputs=[*reported, "taxonomy", "params:run_name", *shown],
                outputs="data_report",
                name="report_data",
            ),
        ]
    )
