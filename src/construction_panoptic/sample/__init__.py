"""A seeded generator of construction scenes, written as CVAT exports and COCO stuff predictions.

The scenes are drawings, for trying the whole pipeline in minutes; results on them say nothing about photographs.
"""

from construction_panoptic.sample.export import generate as generate
