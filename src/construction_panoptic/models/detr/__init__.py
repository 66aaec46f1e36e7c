"""DETR and DETR panoptic: models, matching, losses, post-processing, published weights.

It knows no pipelines and no tracking; the only files it touches are weights files.
"""

from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    fetch_weights,
    load_weights,
    panoptic_architecture,
    read_weights,
)
from construction_panoptic.models.detr.model import (
    Detr,
    DetrPanoptic,
    PanopticFeatures,
    build_detr,
    build_detr_panoptic,
    compile_detector,
)
from construction_panoptic.models.detr.panoptic_model import DetrModel, query_masks
from construction_panoptic.models.detr.postprocess import panoptic_result

__all__ = [
    "PUBLISHED_WEIGHTS",
    "Detr",
    "DetrModel",
    "DetrPanoptic",
    "PanopticFeatures",
    "build_detr",
    "build_detr_panoptic",
    "compile_detector",
    "fetch_weights",
    "load_weights",
    "panoptic_architecture",
    "panoptic_result",
    "query_masks",
    "read_weights",
]
