"""The only stage of the recipe `universal`."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.stage import stage_pipeline
from construction_panoptic.pipelines.universal_training import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Find the weights, fine-tune the model and report."""
    data = ["panoptic_train", "panoptic_val", "converted_images", "params:universal", "universal.weights"]
    find = Node(nodes.find_weights, inputs="params:universal", outputs="weights", name="find_weights")
    finding = Pipeline([find], namespace="universal", parameters={"params:universal"})
    return finding + stage_pipeline("universal", "universal", nodes.train_universal, data)
