"""What everything after training knows of a model: its description, the way from pixels to input, and segments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from construction_panoptic.models.spec import ModelSpec


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
        id_map: int32 [H, W] of the original size; segment ids 1, 2, …, 0 = void.
        segments: a dict for each id in the map, in their order: ``id``, ``category_id``, ``isthing``, ``area`` in
            pixels, ``score`` (0…1).
        boxes: a dict for each box: ``category_id``, ``bbox`` (x, y, width, height in pixels, fractional), ``score``.
    """

    id_map: NDArray[np.int32]
    segments: Sequence[Mapping[str, Any]]
    boxes: list[dict[str, Any]] = field(default_factory=list)


class PanopticModel(Protocol):
    """A model of any kind, ready to segment.

    Attributes:
        spec: all that it takes to build the model again, its weights apart.
        network: the module with the weights; ``state_dict`` is what a checkpoint holds as ``model``. Its
            ``forward(pixels, padding_mask)`` gives a dict with the tensors that `describe` names as outputs.
        prepare: turns uint8 [3, H, W], RGB, into float32 [3, h, w]: the one way from pixels to input. It holds no
            weights, so that it can go to processes that load images.
    """

    spec: ModelSpec
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """Segment a batch, without gradients, in the mode and on the device in which the network is.

        Args:
            images: prepared images, on the network's device.
            overrides: other values for fields of the spec, such as ``{"threshold": 0.5}``; see `ModelSpec.overridden`.
        """
        ...

    def segment_at(
        self, images: Images, thresholds: Sequence[float], overrides: Mapping[str, Any] | None = None
    ) -> Sequence[Iterable[Segmentation]]:
        """Segment a batch at several thresholds, with one pass of the network.

        Returns:
            For each image the segmentations at each threshold, without boxes, computed as they are asked for.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Say for readers of an exported model what goes in and out of the network, and what is made of it.

        Returns:
            ``inputs`` and ``outputs`` (name → text), and whatever else it takes to make segments of the outputs.
        """
        ...


def device_of(network: nn.Module) -> torch.device:
    """Device of a network's parameters."""
    return next(network.parameters()).device
