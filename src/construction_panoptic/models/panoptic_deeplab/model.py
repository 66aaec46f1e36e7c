"""Panoptic-DeepLab behind the door that everything after training knows, `PanopticModel`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.models.panoptic_deeplab.grouping import Groups, group
from construction_panoptic.models.panoptic_deeplab.network import PanopticDeeplab, build_panoptic_deeplab
from construction_panoptic.models.preprocessing import INPUTS, prepare
from construction_panoptic.models.protocol import Images, Segmentation
from construction_panoptic.models.spec import ModelSpec


class PanopticDeeplabModel:
    """Panoptic-DeepLab as a `PanopticModel`; what is shown are segments of a score above the spec's ``threshold``.

    Args:
        network: the network; it may be one in training.
        spec: what it was built from, and how its outputs are used.
    """

    def __init__(self, network: PanopticDeeplab, spec: ModelSpec) -> None:
        self.network: nn.Module = network
        self.spec = spec
        self.settings = parse(PanopticDeeplabSettings, spec.architecture, "model")
        self.prepare: Callable[[Tensor], Tensor] = partial(prepare, settings=spec.preprocessing)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Build the network with random weights.

        Raises:
            ParameterError: the architecture is not one of `PanopticDeeplabSettings`.
        """
        settings = parse(PanopticDeeplabSettings, spec.architecture, "model")
        return cls(build_panoptic_deeplab(spec.num_classes, settings), spec)

    @torch.no_grad()
    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """See `PanopticModel`. The boxes are those of the things' masks."""
        return self.segment_outputs(self.network(images.pixels, images.padding_mask), images, overrides)

    @torch.no_grad()
    def segment_outputs(
        self, outputs: Mapping[str, Tensor], images: Images, overrides: Mapping[str, Any] | None = None
    ) -> list[Segmentation]:
        """Segment a batch of which the network's outputs are there already, as in a validation with losses."""
        threshold = self.spec.overridden(overrides).threshold
        found = zip(self._groups(outputs, images), images.original_sizes, strict=True)
        return [groups.segmentation(size, threshold) for groups, size in found]

    @torch.no_grad()
    def segment_at(
        self,
        images: Images,
        thresholds: Sequence[float],
        overrides: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> list[Iterable[Segmentation]]:
        """See `PanopticModel`; of the overrides none but the threshold has a meaning here."""
        outputs = self.network(images.pixels, images.padding_mask)
        found = zip(self._groups(outputs, images), images.original_sizes, strict=True)
        return [map(partial(groups.segmentation, size), thresholds) for groups, size in found]

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        grouping = self.settings.grouping
        return {
            "inputs": INPUTS,
            "outputs": {
                "semantic": "float32 [B, C, H / 2, W / 2] (rounded up): class scores before softmax, by category id",
                "center": "float32 [B, H / 4, W / 4] (rounded up): heat of centres before sigmoid",
                "offset": "float32 [B, 2, H / 4, W / 4]: from a cell down and right to its thing's centre, cells",
            },
            "panoptic": "enlarge semantic 2 times and offset 4 times (bilinear); a pixel's class is that of the "
            f"largest score among the categories; centres are cells with a heat above {grouping.center_threshold}, "
            f"the hottest of {grouping.center_window} x {grouping.center_window}; a pixel (y, x) of a thing's class "
            "belongs to the centre nearest to ((y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5) + offset; a thing has the "
            f"class of most of its pixels; drop things below {grouping.min_thing_area} and stuff below "
            f"{grouping.min_stuff_area} of the image; score = mean probability of the class, for things times the "
            "centre's heat; keep scores above threshold",
        }

    def _groups(self, outputs: Mapping[str, Tensor], images: Images) -> Iterator[Groups]:
        maps = zip(outputs["semantic"], outputs["center"], outputs["offset"], images.sizes, strict=True)
        for semantic, center, offset, size in maps:
            yield group(
                semantic,
                center,
                offset,
                size=cast("tuple[int, int]", tuple(size)),
                is_thing=self.spec.is_thing,
                settings=self.settings.grouping,
            )
