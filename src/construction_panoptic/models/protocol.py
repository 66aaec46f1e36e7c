"""What everything after training knows of a model: its description, the way from pixels to input, and segments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor, nn

from construction_panoptic.models.spec import ModelSpec


@dataclass(frozen=True)
class Images:
    """Prepared images, padded at the right and at the bottom to one size.

    ``pixels`` are float32 [B, 3, H, W], normalised, 0 in the padding; ``padding_mask`` is bool [B, H, W], True in the
    padding, None where there is none. ``sizes`` are (height, width) of each image within its padding,
    ``original_sizes`` those of its file and of its segmentation.
    """

    pixels: Tensor
    padding_mask: Tensor | None
    sizes: Sequence[tuple[int, int]]
    original_sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Segmentation:
    """What a model sees in one image.

    ``id_map`` is int32 [H, W] of the original size, with segment ids 1, 2, …, 0 = void. ``segments`` has for each of
    them, in their order, ``id``, ``category_id``, ``isthing``, ``area`` in pixels and ``score`` (0…1); ``boxes`` for
    each box ``category_id``, ``bbox`` (x, y, width, height in pixels, fractional) and ``score``.
    """

    id_map: NDArray[np.int32]
    segments: Sequence[Mapping[str, Any]]
    boxes: list[dict[str, Any]] = field(default_factory=list)

    def with_boxes(self) -> "Segmentation":
        """The same with the boxes of the things' masks; each segment has a pixel."""
        boxes = []
        for segment, (rows, columns) in zip(self.segments, find_objects(self.id_map), strict=True):
            if segment["isthing"]:
                box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
                own = {name: segment[name] for name in ("category_id", "score")}
                boxes.append({"bbox": [float(side) for side in box], **own})
        return replace(self, boxes=boxes)


class PanopticModel(Protocol):
    """A model of any kind, ready to segment.

    ``spec`` is all that it takes to build the model again, its weights apart. ``network`` is the module with the
    weights: its ``state_dict`` is what a checkpoint holds as ``model``, its ``forward(pixels, padding_mask)`` gives a
    dict with the tensors that `describe` names as outputs. ``prepare`` turns uint8 [3, H, W], RGB, into float32
    [3, h, w]: the one way from pixels to input, without weights, so that processes that load images can have it.
    """

    spec: ModelSpec
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """Segment a batch on the network's device, without gradients, in the mode in which the network is.

        ``overrides`` are other values for fields of the spec, such as ``{"threshold": 0.5}``; see
        `ModelSpec.overridden`.
        """
        ...

    def segment_at(
        self, images: Images, thresholds: Sequence[float], overrides: Mapping[str, Any] | None = None
    ) -> Sequence[Iterable[Segmentation]]:
        """Segment a batch at several thresholds, with one pass of the network.

        Gives for each image the segmentations at each threshold, without boxes, computed as they are asked for.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Say for readers of an exported model what goes in and out of the network, and what is made of it.

        Gives ``inputs`` and ``outputs`` (name → text), and whatever else it takes to make segments of the outputs.
        """
        ...


def device_of(network: nn.Module) -> torch.device:
    """Device of a network's parameters."""
    return next(network.parameters()).device
