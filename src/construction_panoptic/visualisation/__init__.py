"""Pictures of data and results: overlays and sheets of images, charts, reports.

Functions take the classes as an object with ``names``, ``colors`` and ``is_thing`` by category id, such as the
project's taxonomy, and return a picture, figure or page; saving is left to the caller.
"""

from construction_panoptic.visualisation.overlays import ClassTable, panoptic_overlay

__all__ = ["ClassTable", "panoptic_overlay"]
