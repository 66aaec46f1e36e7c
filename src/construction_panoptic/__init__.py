"""Panoptic segmentation of construction sites, from CVAT exports to a trained model and its PQ table."""

__version__ = "0.1.0"
