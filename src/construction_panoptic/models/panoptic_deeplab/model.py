"""Panoptic-DeepLab as a `PanopticModel`."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self, cast

from torch import Tensor, nn

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.models.panoptic_deeplab.grouping import group
from construction_panoptic.models.panoptic_deeplab.network import PanopticDeeplab, build_panoptic_deeplab
from construction_panoptic.models.protocol import Images, PanopticModel, Segmentation
from construction_panoptic.models.spec import ModelSpec


class PanopticDeeplabModel(PanopticModel):
    """A `PanopticDeeplab`; what is shown are segments of a score above the spec's ``threshold``."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__(network, spec)
        self.settings = parse(PanopticDeeplabSettings, spec.architecture, "model")

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """See `PanopticModel`."""
        settings = parse(PanopticDeeplabSettings, spec.architecture, "model")
        return cls(build_panoptic_deeplab(spec.num_classes, settings), spec)

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        grouping = self.settings.grouping
        return {
            "inputs": self.inputs,
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
            "centre's heat; keep scores above threshold, of stuff above threshold_stuff if there is one",
        }

    def features(self, images: Images) -> Tensor:
        """See `PanopticModel`; the decoder's map, at stride 4."""
        network = cast("PanopticDeeplab", self.network)
        return network.decoder(network.backbone(images.pixels), images.padding_mask)

    def candidates(
        self, outputs: Mapping[str, Tensor], images: Images, spec: ModelSpec
    ) -> Iterator[Callable[[ModelSpec], Segmentation]]:
        """See `PanopticModel`."""
        maps = (outputs["semantic"], outputs["center"], outputs["offset"])
        for *of_image, size, original in zip(*maps, images.sizes, images.original_sizes, strict=True):
            found = group(*of_image, size=size, is_thing=spec.is_thing, settings=self.settings.grouping)
            yield partial(_above_threshold, found, original)


def _above_threshold(found: Segmentation, size: tuple[int, int], spec: ModelSpec) -> Segmentation:
    return found.resized(size, least_scores=spec.least_scores)
