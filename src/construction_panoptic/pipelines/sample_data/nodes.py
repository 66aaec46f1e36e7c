"""Nodes that make the synthetic sample."""

from collections.abc import Iterator

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample import generate


def generate_sample(parameters: SampleSettings) -> Iterator[tuple[str, bytes]]:
    """Draw scenes; give path and content of each file of their CVAT exports and ready stuff predictions."""
    return iter(generate(parameters))
