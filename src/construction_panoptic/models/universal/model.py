"""A panoptic model of `transformers` behind the door that everything after training knows, `PanopticModel`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from construction_panoptic.models.detr.mask_merging import LEAST_PROBABILITY, merged_masks
from construction_panoptic.models.detr.panoptic_model import MASK_MERGING, QueryMasks
from construction_panoptic.models.detr.postprocess import likely_queries
from construction_panoptic.models.preprocessing import INPUTS, prepare
from construction_panoptic.models.protocol import Images, Segmentation
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.network import STRIDE, Universal, of_architecture


class UniversalModel:
    """A model of `transformers` as a `PanopticModel`; its masks are merged mask by mask, see `merged_masks`.

    Args:
        network: the network; it may be one in training.
        spec: what it was built from, and how its outputs are used.
    """

    def __init__(self, network: Universal, spec: ModelSpec) -> None:
        self.network: nn.Module = network
        self.spec = spec
        self.prepare: Callable[[Tensor], Tensor] = partial(prepare, settings=spec.preprocessing)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Build the network with random weights.

        Raises:
            ParameterError: `transformers` is not installed, or does not know the architecture.
        """
        return cls(of_architecture(spec.architecture), spec)

    @torch.no_grad()
    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """See `PanopticModel`. The boxes are those of the things' masks."""
        return self.segment_outputs(self.network(images.pixels, images.padding_mask), images, overrides)

    @torch.no_grad()
    def segment_outputs(
        self, outputs: Mapping[str, Tensor], images: Images, overrides: Mapping[str, Any] | None = None
    ) -> list[Segmentation]:
        """Segment a batch of which the network's outputs are there already, as in a validation with losses."""
        spec = self.spec.overridden(overrides)
        found = zip(self._queries(outputs, images), images.sizes, images.original_sizes, strict=True)
        return [_merge(queries, size, original, spec).with_boxes() for queries, size, original in found]

    @torch.no_grad()
    def segment_at(
        self, images: Images, thresholds: Sequence[float], overrides: Mapping[str, Any] | None = None
    ) -> list[Iterable[Segmentation]]:
        """See `PanopticModel`; a threshold is the least quality of a mask."""
        outputs = self.network(images.pixels, images.padding_mask)
        found = zip(self._queries(outputs, images), images.sizes, images.original_sizes, strict=True)
        specs = [self.spec.overridden({**(overrides or {}), "threshold": threshold}) for threshold in thresholds]
        return [map(partial(_merge, queries, size, original), specs) for queries, size, original in found]

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        return {
            "inputs": INPUTS,
            "outputs": {
                "pred_logits": "float32 [B, Q, C + 1]: class scores before softmax; index = category id, last: no "
                "object",
                "pred_masks": "float32 [B, Q, H / 4, W / 4] (rounded up): mask scores before sigmoid",
            },
            "panoptic": MASK_MERGING,
        }

    def _queries(self, outputs: Mapping[str, Tensor], images: Images) -> Iterator[QueryMasks]:
        for logits, masks, (height, width) in zip(
            outputs["pred_logits"], outputs["pred_masks"], images.sizes, strict=True
        ):
            kept, scores, labels = likely_queries(logits, LEAST_PROBABILITY)
            yield QueryMasks(masks[kept, : -(-height // STRIDE), : -(-width // STRIDE)], scores, labels)


def _merge(queries: QueryMasks, size: tuple[int, int], original: tuple[int, int], spec: ModelSpec) -> Segmentation:
    return merged_masks(
        queries.masks,
        queries.scores,
        queries.labels,
        processed_size=size,
        target_size=original,
        is_thing=spec.is_thing,
        least_quality=(spec.quality_things, spec.quality_stuff),
    )
