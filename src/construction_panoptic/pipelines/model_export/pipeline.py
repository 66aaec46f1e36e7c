"""Wiring of the export; not part of the main job."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.model_export import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Export the best model as safetensors with a description, as ONNX, and as a model that MLflow serves."""
    return Pipeline(
        [
            Node(nodes.take_model, inputs="mask_head.best", outputs="exported_model", name="export_weights"),
            Node(
                nodes.convert_to_onnx,
                inputs="exported_model",
                outputs=["exported_onnx", "exported_onnx_report"],
                name="export_onnx",
            ),
            Node(
                nodes.name_model,
                inputs=["exported_model", "params:model_export"],
                outputs="served_model",
                name="register_model",
            ),
        ]
    )
