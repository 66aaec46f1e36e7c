"""Panoptic-DeepLab: panoptic segmentation bottom-up, without boxes (Cheng et al. 2020, arXiv 1911.10194).

It knows no pipelines, tracking or files.
"""

from construction_panoptic.models.panoptic_deeplab.losses import deeplab_losses, normalisers
from construction_panoptic.models.panoptic_deeplab.model import PanopticDeeplabModel
from construction_panoptic.models.panoptic_deeplab.network import PanopticDeeplab, build_panoptic_deeplab, load_weights
from construction_panoptic.models.panoptic_deeplab.targets import Targets, make_targets

__all__ = [
    "PanopticDeeplab",
    "PanopticDeeplabModel",
    "Targets",
    "build_panoptic_deeplab",
    "deeplab_losses",
    "load_weights",
    "make_targets",
    "normalisers",
]
