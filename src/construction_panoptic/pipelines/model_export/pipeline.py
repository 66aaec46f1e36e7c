"""Wiring of the export; not part of the main job."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.model_export import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Export the best model as safetensors with a description, and as ONNX."""
    return Pipeline(
        [
            Node(nodes.describe_model, inputs="mask_head.best", outputs="exported_model", name="export_weights"),
            Node(
                nodes.convert_to_onnx,
                inputs="exported_model",
                outputs=["exported_onnx", "exported_onnx_report"],
                name="export_onnx",
            ),
        ]
    )
