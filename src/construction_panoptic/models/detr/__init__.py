"""DETR and DETR panoptic: models, matching, losses, post-processing, published weights.

It knows no pipelines and no tracking; the only files it touches are weights files.
"""

from construction_panoptic.models.backbones import Backbone
from construction_panoptic.models.detr.boxes import (
    box_area,
    centers_to_corners,
    corners_to_centers,
    generalized_iou,
)
from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    LoadReport,
    fetch_weights,
    load_weights,
    panoptic_architecture,
    read_weights,
)
from construction_panoptic.models.detr.losses import (
    LossWeights,
    detection_losses,
    mask_losses,
    matched_target_masks,
    target_masks,
    total_loss,
)
from construction_panoptic.models.detr.matcher import MatchCosts, NonFiniteError, match, match_layers
from construction_panoptic.models.detr.model import (
    Detr,
    DetrPanoptic,
    PanopticFeatures,
    build_detr,
    build_detr_panoptic,
    compile_detector,
)
from construction_panoptic.models.detr.panoptic_model import DetrModel
from construction_panoptic.models.detr.postprocess import (
    PanopticResult,
    SegmentInfo,
    box_results,
    keep_queries,
    panoptic_result,
)
from construction_panoptic.models.detr.segmenting import segment_images

__all__ = [
    "PUBLISHED_WEIGHTS",
    "Backbone",
    "Detr",
    "DetrModel",
    "DetrPanoptic",
    "LoadReport",
    "LossWeights",
    "MatchCosts",
    "NonFiniteError",
    "PanopticFeatures",
    "PanopticResult",
    "SegmentInfo",
    "box_area",
    "box_results",
    "build_detr",
    "build_detr_panoptic",
    "centers_to_corners",
    "compile_detector",
    "corners_to_centers",
    "detection_losses",
    "fetch_weights",
    "generalized_iou",
    "keep_queries",
    "load_weights",
    "mask_losses",
    "match",
    "match_layers",
    "matched_target_masks",
    "panoptic_architecture",
    "panoptic_result",
    "read_weights",
    "segment_images",
    "target_masks",
    "total_loss",
]
