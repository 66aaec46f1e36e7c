"""DETR and DETR panoptic: the model alone, without files, pipelines or tracking."""

from construction_panoptic.detr.backbone import Backbone
from construction_panoptic.detr.model import (
    Detr,
    DetrPanoptic,
    PanopticFeatures,
    build_detr,
    build_detr_panoptic,
)

__all__ = [
    "Backbone",
    "Detr",
    "DetrPanoptic",
    "PanopticFeatures",
    "build_detr",
    "build_detr_panoptic",
]
