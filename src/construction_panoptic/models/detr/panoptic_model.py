"""DETR behind the door that everything after training knows, `PanopticModel`; masks for the kept queries only."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from construction_panoptic.models.detr.mask_merging import LEAST_FREE, LEAST_PROBABILITY, merged_masks
from construction_panoptic.models.detr.model import DetrPanoptic, PanopticFeatures, build_detr_panoptic
from construction_panoptic.models.detr.postprocess import (
    TINY_AREA,
    box_results,
    keep_queries,
    likely_queries,
    panoptic_result,
)
from construction_panoptic.models.preprocessing import INPUTS, prepare
from construction_panoptic.models.protocol import Images, Segmentation
from construction_panoptic.models.spec import ModelSpec

_DESCRIPTION = {
    "tiny_area": TINY_AREA,
    "inputs": INPUTS,
    "outputs": {
        "pred_logits": "float32 [B, Q, C + 1]: class scores before softmax; index = category id, last: no object",
        "pred_boxes": "float32 [B, Q, 4]: centre x, centre y, width, height as fractions of H and W without padding",
        "pred_masks": "float32 [B, Q, H / 4, W / 4] (rounded up): mask scores before sigmoid",
    },
}
MASK_MERGING = (
    f"take queries whose best category has a probability above {LEAST_PROBABILITY}; quality is that "
    "probability times the mean mask probability where it is at least 0.5; from the highest quality down, a query "
    "with at least quality_things or quality_stuff takes those pixels of its mask that are free, if they are at least "
    f"{LEAST_FREE[0]} of it (things) or {LEAST_FREE[1]} (stuff); queries of a stuff class are one segment; drop those "
    "of tiny_area pixels or fewer"
)
_MERGING = {
    "pixels": "keep queries whose best class is a category with a score above threshold; each pixel goes to the one "
    "with the largest mask score; queries of a stuff class are one segment; drop those of tiny_area pixels or fewer",
    "masks": MASK_MERGING,
}


@dataclass(frozen=True)
class QueryMasks:
    """Of the kept queries of one image mask logits [K, h, w], at a quarter of the processed size, rounded up; class
    probabilities [K]; and labels, int64 [K].
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor

    def select(self, used: Tensor) -> "QueryMasks":
        """The queries where ``used``, bool [K], is true."""
        return QueryMasks(self.masks[used], self.scores[used], self.labels[used])


class DetrModel:
    """DETR panoptic as a `PanopticModel`.

    ``network`` is a `DetrPanoptic`, or for `boxes_of` alone a `Detr`; it may be one in training. ``spec`` says what it
    was built from, and how its outputs are used.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self.network = network
        self.spec = spec
        self.prepare: Callable[[Tensor], Tensor] = partial(prepare, settings=spec.preprocessing)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Build the network with random weights; `ParameterError` if its architecture is not one of `DetrSettings`."""
        return cls(build_detr_panoptic(spec.num_classes, **spec.architecture), spec)

    @torch.no_grad()
    def segment(self, images: Images, overrides: Mapping[str, Any] | None = None) -> list[Segmentation]:
        """See `PanopticModel`. The boxes are those of every query whose best class is a category.

        A query whose best class is an output without a category (ids may have gaps) is treated as no-object.
        """
        return self.segment_features(self._features(images), images, overrides)

    @torch.no_grad()
    def segment_features(
        self, features: PanopticFeatures, images: Images, overrides: Mapping[str, Any] | None = None
    ) -> list[Segmentation]:
        """Segment a batch of which the detector's outputs are there already, as in a validation with losses."""
        spec = self.spec.overridden(overrides)
        queries = self._queries(features, images, spec, spec.threshold)
        boxes = self.boxes_of(features.outputs, images)
        return [
            replace(_merge(each, size, original, spec), boxes=found)
            for each, found, size, original in zip(queries, boxes, images.sizes, images.original_sizes, strict=True)
        ]

    @torch.no_grad()
    def segment_at(
        self, images: Images, thresholds: Sequence[float], overrides: Mapping[str, Any] | None = None
    ) -> list[Iterable[Segmentation]]:
        """See `PanopticModel`."""
        spec = self.spec.overridden(overrides)
        queries = self._queries(self._features(images), images, spec, min(thresholds))
        sizes = zip(queries, images.sizes, images.original_sizes, strict=True)
        return [_at(thresholds, each, size, original, spec) for each, size, original in sizes]

    def boxes_of(self, outputs: Mapping[str, Tensor], images: Images) -> list[list[dict[str, Any]]]:
        """Give for each image what `Segmentation.boxes` says, from the outputs of a `Detr` for a batch."""
        known = self.spec.is_thing
        on_cpu = {name: outputs[name].cpu() for name in ("pred_logits", "pred_boxes")}
        found = []
        for result in box_results(on_cpu, torch.tensor(images.original_sizes)):
            x, y, right, bottom = result["boxes"].unbind(1)
            bboxes = torch.stack([x, y, right - x, bottom - y], dim=1).tolist()
            rows = zip(result["labels"].tolist(), bboxes, result["scores"].tolist(), strict=True)
            found.append([{"category_id": k, "bbox": box, "score": score} for k, box, score in rows if k in known])
        return found

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        return _DESCRIPTION | {"panoptic": _MERGING[self.spec.merging]}

    def _features(self, images: Images) -> PanopticFeatures:
        return cast("DetrPanoptic", self.network).features(images.pixels, images.padding_mask)

    def _queries(
        self, features: PanopticFeatures, images: Images, spec: ModelSpec, threshold: float
    ) -> list[QueryMasks]:
        """The masks of the queries that take part; ``threshold`` is that of merging by pixels."""
        by_pixels = spec.merging == "pixels"
        return query_masks(
            cast("DetrPanoptic", self.network),
            features,
            images.sizes,
            spec.is_thing,
            threshold=threshold if by_pixels else LEAST_PROBABILITY,
            keep=keep_queries if by_pixels else likely_queries,
        )


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


def _at(
    thresholds: Sequence[float], queries: QueryMasks, size: tuple[int, int], original: tuple[int, int], spec: ModelSpec
) -> Iterator[Segmentation]:
    for threshold in thresholds:
        own = spec.overridden({"threshold": threshold})
        kept = queries.select(queries.scores > threshold) if spec.merging == "pixels" else queries
        yield _merge(kept, size, original, own)


def _merge(queries: QueryMasks, size: tuple[int, int], original: tuple[int, int], spec: ModelSpec) -> Segmentation:
    arguments = (queries.masks, queries.scores, queries.labels)
    sizes: dict[str, Any] = {"processed_size": size, "target_size": original, "is_thing": spec.is_thing}
    if spec.merging == "pixels":
        return panoptic_result(*arguments, **sizes)
    return merged_masks(*arguments, **sizes, least_quality=(spec.quality_things, spec.quality_stuff))
