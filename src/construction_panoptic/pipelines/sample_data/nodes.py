"""Nodes that make the synthetic sample."""

from collections.abc import Iterator
from typing import Any

from construction_panoptic.sample import SampleSettings, generate
from construction_panoptic.training.settings import parse


def generate_sample(parameters: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Draw construction-like scenes and write them as CVAT exports with ready stuff predictions.

    Returns:
        (relative path, content) of each file, drawn as it is asked for.
    """
    return iter(generate(parse(SampleSettings, parameters, "sample_data")))
