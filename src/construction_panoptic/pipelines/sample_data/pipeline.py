"""Wiring of the synthetic sample."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from construction_panoptic.pipelines.sample_data.nodes import generate_sample


def create_pipeline(**_: Any) -> Pipeline:
    """Draw the sample's scenes and write them as raw data."""
    return Pipeline(
        [Node(generate_sample, inputs="params:sample_data", outputs="sample_raw_data", name="generate_sample_data")]
    )
