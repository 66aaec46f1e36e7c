"""Nodes that make the synthetic sample."""

from collections.abc import Iterator

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample import generate


def generate_sample(parameters: SampleSettings) -> Iterator[tuple[str, bytes]]:
    """Draw construction-like scenes and write them as CVAT exports with ready stuff predictions.

    Returns:
        (relative path, content) of each file, drawn as it is asked for.
    """
    return iter(generate(parameters))
