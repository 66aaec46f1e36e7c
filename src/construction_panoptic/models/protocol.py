"""What everything after training knows of a model: its description, the way from pixels to input, and segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Images:
    """Prepared images, padded at the right and at the bottom to one size.

    Attributes:
        pixels: float32 [B, 3, H, W], normalised, 0 in the padding.
        padding_mask: bool [B, H, W], True in the padding; None where there is none.
        sizes: (height, width) of each image within its padding.
        original_sizes: (height, width) of each image file, the size of its segmentation.
    """

    pixels: Tensor
    padding_mask: Tensor | None
    sizes: Sequence[tuple[int, int]]
    original_sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Segmentation:
    """What a model sees in one image.

    Attributes:
        id_map: int32 [H, W] of the original size; segment ids from 1, 0 = void.
        segments: a dict for each id in the map: ``id``, ``category_id``, ``isthing``, ``score`` (0…1), ``area`` in
            pixels.
        boxes: a dict for each box: ``category_id``, ``bbox`` (x, y, width, height in pixels, fractional), ``score``.
    """

    id_map: NDArray[np.int32]
    segments: list[dict[str, Any]]
    boxes: list[dict[str, Any]] = field(default_factory=list)


class PanopticModel(Protocol):
    """A model of any kind, ready to segment.

    Attributes:
        spec: all that it takes to build the model again, its weights apart; see `construction_panoptic.models.spec`.
        network: the module with the weights; ``state_dict`` is what a checkpoint holds as ``model``.
    """

    spec: Any
    network: nn.Module

    def prepare(self, image: Tensor) -> Tensor:
        """Turn uint8 [3, H, W], RGB, into float32 [3, h, w], the one way from pixels to input."""
        ...

    def segment(self, images: Images, thresholds: Mapping[str, float] | None = None) -> list[Segmentation]:
        """Segment a batch, without gradients, in the mode and on the device in which the network is.

        Args:
            images: prepared images.
            thresholds: override those of the spec, such as ``{"threshold": 0.5}``.
        """
        ...

    def segment_at(self, images: Images, thresholds: Sequence[float]) -> list[list[Segmentation]]:
        """Segment a batch at several score thresholds, with one pass of the network; a list an image."""
        ...


def device_of(network: nn.Module) -> torch.device:
    """Device of a network's parameters."""
    return next(network.parameters()).device
