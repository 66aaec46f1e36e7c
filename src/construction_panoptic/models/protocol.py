"""What everything after training knows of a model: its description, the way from pixels to input, and segments."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects
from torch import Tensor, nn

from construction_panoptic.models.preprocessing import prepare
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

    def resized(
        self, size: tuple[int, int], *, least_scores: Mapping[bool, float] | None = None, least_area: int = 1
    ) -> Self:
        """The same without boxes at (height, width), nearest, on PIL's grid.

        Segments of fewer pixels there than ``least_area``, or whose score is not above that of ``least_scores`` for
        things (True) or stuff (False), become void.
        """
        id_map = self.id_map
        if id_map.shape != size:
            rows, columns = (nearest_index(old, new) for old, new in zip(id_map.shape, size, strict=True))
            id_map = id_map.take(columns, axis=1).take(rows, axis=0)
        areas = np.bincount(id_map.ravel(), minlength=len(self.segments) + 1).tolist()
        found = ({**segment, "area": areas[segment["id"]]} for segment in self.segments)
        least = least_scores or {True: 0.0, False: 0.0}
        kept = [each for each in found if each["area"] >= least_area and each["score"] > least[bool(each["isthing"])]]
        new_ids = np.zeros(len(areas), dtype=np.int32)
        new_ids[[segment["id"] for segment in kept]] = np.arange(1, len(kept) + 1)
        return type(self)(new_ids[id_map], [segment | {"id": number} for number, segment in enumerate(kept, 1)])

    def extents(self) -> list[list[int]]:
        """Of each segment, which has a pixel, x, y, width and height in pixels."""
        return [[x.start, y.start, x.stop - x.start, y.stop - y.start] for y, x in find_objects(self.id_map)]

    def with_boxes(self) -> Self:
        """The same with the boxes of the masks, of things and stuff."""
        boxes = [
            {"bbox": list(map(float, extent)), "category_id": segment["category_id"], "score": segment["score"]}
            for segment, extent in zip(self.segments, self.extents(), strict=True)
        ]
        return replace(self, boxes=boxes)


def nearest_index(source: int, target: int) -> NDArray[np.int32]:
    """Index of the source pixel that PIL's nearest resize reads for each target pixel; int32 [target]."""
    places = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return np.asarray(places.resize((target, 1), Image.Resampling.NEAREST))[0]


class PanopticModel(ABC):
    """A model of any kind, ready to segment.

    ``spec`` is all that it takes to build the model again, its weights apart. ``network`` is the module with the
    weights: its ``state_dict`` is what a checkpoint holds as ``model``, its ``forward(pixels, padding_mask)`` gives a
    dict with the tensors that `describe` names as outputs. ``prepare`` turns uint8 [3, H, W], RGB, into float32
    [3, h, w]: the one way from pixels to input, without weights, so that processes that load images can have it.
    """

    inputs: ClassVar[Mapping[str, str]] = {
        "images": "float32 [B, 3, H, W]: RGB in 0…1, shorter side evaluation_side unless the longer one would pass "
        "max_side, minus mean, divided by std, 0 on padding at the right and the bottom",
        "padding_mask": "bool [B, H, W]: true on padding",
    }

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        """Take a network, which may be one in training, and what it was built from."""
        self.network = network
        self.spec = spec
        self.prepare: Callable[[Tensor], Tensor] = partial(prepare, settings=spec.preprocessing)

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Build the network with random weights; `ParameterError` if its architecture is not one of its kind."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say for readers of an exported model what goes in and out of the network, and what is made of it.

        Gives ``inputs`` and ``outputs`` (name → text), and whatever else it takes to make segments of the outputs.
        """

    def outputs(self, images: Images) -> Any:
        """Run the network on a batch; gives what `segment_outputs` takes."""
        return self.network(images.pixels, images.padding_mask)

    @abstractmethod
    def features(self, images: Images) -> Tensor:
        """Give what the network knows of each place, float [B, C, h, w]; images that look alike to it are near."""

    @abstractmethod
    def candidates(
        self, outputs: Any, images: Images, spec: ModelSpec
    ) -> Iterator[Callable[[ModelSpec], Segmentation]]:
        """Give of each image a function to the segmentation without boxes, from ``spec`` or a higher threshold's."""

    @torch.no_grad()
    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """Segment a batch on the network's device, without gradients, in the mode in which the network is.

        ``overrides`` are other values for fields of the spec, such as ``{"threshold": 0.5}``; see
        `ModelSpec.overridden`.
        """
        return self.segment_outputs(self.outputs(images), images, overrides)

    @torch.no_grad()
    def segment_outputs(
        self, outputs: Any, images: Images, overrides: Mapping[str, Any] | None = None
    ) -> list[Segmentation]:
        """Segment a batch whose outputs are there, as in a validation with losses; the boxes are those of the masks."""
        spec = self.spec.overridden(overrides)
        return [segmentation_at(spec).with_boxes() for segmentation_at in self.candidates(outputs, images, spec)]

    @torch.no_grad()
    def segment_at(
        self, images: Images, thresholds: Sequence[float], overrides: Mapping[str, Any] | None = None
    ) -> list[Iterable[Segmentation]]:
        """Segment a batch at several thresholds, with one pass of the network.

        Gives for each image the segmentations at each threshold, without boxes, computed as they are asked for.
        """
        spec = self.spec.overridden(overrides)
        specs = [spec.overridden({"threshold": threshold}) for threshold in thresholds]
        lowest = spec.overridden({"threshold": min(thresholds)})
        found = self.candidates(self.outputs(images), images, lowest)
        return [map(segmentation_at, specs) for segmentation_at in found]


def device_of(network: nn.Module) -> torch.device:
    """Device of a network's parameters."""
    return next(network.parameters()).device
