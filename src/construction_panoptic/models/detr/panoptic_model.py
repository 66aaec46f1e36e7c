"""DETR as a `PanopticModel`; masks are computed for the kept queries only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor

from construction_panoptic.models.detr.mask_merging import LEAST_FREE, LEAST_PROBABILITY, merged_masks
from construction_panoptic.models.detr.matcher import corners
from construction_panoptic.models.detr.model import DetrPanoptic, PanopticFeatures, build_detr_panoptic
from construction_panoptic.models.detr.postprocess import (
    TINY_AREA,
    QueryMasks,
    keep_queries,
    likely_queries,
    panoptic_result,
)
from construction_panoptic.models.protocol import Images, PanopticModel, Segmentation
from construction_panoptic.models.spec import ModelSpec

LOGITS = "float32 [B, Q, C + 1]: class scores before softmax; index = category id, last: no object"
MASKS = "float32 [B, Q, H / 4, W / 4] (rounded up): mask scores before sigmoid"
MASK_MERGING = (
    f"take queries whose best category has a probability above {LEAST_PROBABILITY}; quality is that "
    "probability times the mean mask probability where it is at least 0.5; from the highest quality down, a query "
    "with at least quality_things or quality_stuff takes those pixels of its mask that are free, if they are at least "
    f"{LEAST_FREE[0]} of it (things) or {LEAST_FREE[1]} (stuff); queries of a stuff class are one segment; drop those "
    f"of {TINY_AREA} pixels or fewer"
)
_MERGING = {
    "pixels": "keep queries whose best class is a category with a score above threshold, of stuff above "
    "threshold_stuff if there is one; each pixel goes to the one with the largest mask score; queries of a stuff class "
    f"are one segment; drop those of {TINY_AREA} pixels or fewer",
    "masks": MASK_MERGING,
}


class DetrModel(PanopticModel):
    """DETR panoptic; for `boxes_of` alone its network may be a `Detr`.

    A query whose best class is an output without a category (ids may have gaps) is treated as no-object.
    """

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """See `PanopticModel`."""
        return cls(build_detr_panoptic(spec.num_classes, **spec.architecture), spec)

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        boxes = "float32 [B, Q, 4]: centre x, centre y, width, height as fractions of H and W without padding"
        return {
            "tiny_area": TINY_AREA,
            "inputs": self.inputs,
            "outputs": {"pred_logits": LOGITS, "pred_boxes": boxes, "pred_masks": MASKS},
            "panoptic": _MERGING[self.spec.merging],
        }

    def outputs(self, images: Images) -> PanopticFeatures:
        """What the detector gives for a batch; masks follow when it is known which are wanted."""
        return cast("DetrPanoptic", self.network).features(images.pixels, images.padding_mask)

    def features(self, images: Images) -> Tensor:
        """See `PanopticModel`; the encoder's output, at stride 32."""
        return self.outputs(images).memory

    def candidates(
        self, outputs: PanopticFeatures, images: Images, spec: ModelSpec
    ) -> Iterator[Callable[[ModelSpec], Segmentation]]:
        """See `PanopticModel`."""
        by_pixels = spec.merging == "pixels"
        found = query_masks(
            cast("DetrPanoptic", self.network),
            outputs,
            images.sizes,
            spec.is_thing,
            threshold=min(spec.least_scores.values()) if by_pixels else LEAST_PROBABILITY,
            keep=keep_queries if by_pixels else likely_queries,
        )
        for queries, size, original in zip(found, images.sizes, images.original_sizes, strict=True):
            yield partial(merge_queries, queries, size, original)

    @torch.no_grad()
    def segment_outputs(
        self, outputs: PanopticFeatures, images: Images, overrides: Mapping[str, Any] | None = None
    ) -> list[Segmentation]:
        """See `PanopticModel`; but the boxes are those of the queries."""
        spec = self.spec.overridden(overrides)
        found = zip(self.candidates(outputs, images, spec), self.boxes_of(outputs, images), strict=True)
        return [replace(segmentation_at(spec), boxes=boxes) for segmentation_at, boxes in found]

    def boxes_of(self, outputs: PanopticFeatures, images: Images) -> list[list[dict[str, Any]]]:
        """The box of every query whose best class, other than no-object, is a category."""
        scores, labels = outputs.pred_logits.cpu().softmax(-1)[..., :-1].max(-1)
        sides = torch.tensor([(width, height, width, height) for height, width in images.original_sizes])
        x, y, right, bottom = (corners(outputs.pred_boxes.cpu()) * sides[:, None]).unbind(-1)
        boxes = torch.stack([x, y, right - x, bottom - y], dim=-1)
        return [
            [
                {"category_id": category, "bbox": box, "score": score}
                for category, box, score in zip(*of_image, strict=True)
                if category in self.spec.is_thing
            ]
            for of_image in zip(labels.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        ]


def query_masks(
    model: DetrPanoptic,
    features: PanopticFeatures,
    processed_sizes: Sequence[tuple[int, int]],
    is_thing: Mapping[int, bool],
    *,
    threshold: float,
    keep: Callable[[Tensor, float], tuple[Tensor, Tensor, Tensor]] = keep_queries,
) -> list[QueryMasks]:
    """Compute the masks of the queries of each image that ``keep`` chooses and whose label is in ``is_thing``."""
    known = torch.tensor(sorted(is_thing), device=features.queries.device)
    kept = []
    for logits in features.pred_logits:
        queries, scores, labels = keep(logits, threshold)
        chosen = torch.isin(labels, known)
        kept.append((queries[chosen], scores[chosen], labels[chosen]))
    counts = [len(queries) for queries, _, _ in kept]
    batch_index = torch.arange(len(kept)).repeat_interleave(torch.tensor(counts)).to(features.queries.device)
    masks = model.masks(features, batch_index, torch.cat([queries for queries, _, _ in kept]))
    return [
        # A mask has a cell for each four pixels, the last of them may be partly padding.
        QueryMasks(logits[:, : -(-height // 4), : -(-width // 4)].float(), scores, labels)
        for logits, (height, width), (_, scores, labels) in zip(masks.split(counts), processed_sizes, kept, strict=True)
    ]


def merge_queries(
    queries: QueryMasks, size: tuple[int, int], original: tuple[int, int], spec: ModelSpec
) -> Segmentation:
    """Merge the queries of an image of the processed and the original ``size``, as the spec says."""
    is_thing, least_scores = spec.is_thing, spec.least_scores
    sizes: dict[str, Any] = {"processed_size": size, "target_size": original, "is_thing": is_thing}
    if spec.merging == "pixels":
        least = [least_scores[is_thing[label]] for label in queries.labels.tolist()]
        return panoptic_result(queries.select(queries.scores > queries.scores.new_tensor(least)), **sizes)
    return merged_masks(queries, **sizes, least_quality=(spec.quality_things, spec.quality_stuff))
