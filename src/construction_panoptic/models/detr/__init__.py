"""DETR and DETR panoptic: models, matching, losses, post-processing, published weights."""

from construction_panoptic.models.detr.checkpoint import fetch_weights, load_weights
from construction_panoptic.models.detr.model import Detr, DetrPanoptic, build_detr, build_detr_panoptic
from construction_panoptic.models.detr.panoptic_model import DetrModel, query_masks
from construction_panoptic.models.detr.postprocess import panoptic_result

__all__ = [
    "Detr",
    "DetrModel",
    "DetrPanoptic",
    "build_detr",
    "build_detr_panoptic",
    "fetch_weights",
    "load_weights",
    "panoptic_result",
    "query_masks",
]
