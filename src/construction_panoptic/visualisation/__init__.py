"""Pictures of data and results: functions that return a picture, figure or page; saving is left to the caller."""

from construction_panoptic.visualisation.overlays import ClassTable, panoptic_overlay

__all__ = ["ClassTable", "panoptic_overlay"]
