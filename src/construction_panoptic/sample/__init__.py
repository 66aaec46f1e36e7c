"""A seeded generator of construction scenes, written as CVAT exports and COCO stuff predictions.

The scenes are drawings, for trying the whole pipeline in minutes; results on them say nothing about photographs.
"""

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample.export import generate

__all__ = ["SampleSettings", "generate"]
