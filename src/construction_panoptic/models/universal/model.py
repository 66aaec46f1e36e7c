"""A panoptic model of `transformers` as a `PanopticModel`."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from construction_panoptic.models.detr.mask_merging import LEAST_PROBABILITY
from construction_panoptic.models.detr.panoptic_model import LOGITS, MASK_MERGING, MASKS, merge_queries
from construction_panoptic.models.detr.postprocess import QueryMasks, likely_queries
from construction_panoptic.models.protocol import Images, PanopticModel, Segmentation
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.network import STRIDE, of_architecture


class UniversalModel(PanopticModel):
    """A `Universal`; its masks are merged mask by mask, see `merged_masks`, and a threshold is their least quality."""

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """See `PanopticModel`; also a `ParameterError` if `transformers` is not installed."""
        return cls(of_architecture(spec.architecture), spec)

    def describe(self) -> dict[str, Any]:
        """See `PanopticModel`."""
        outputs = {"pred_logits": LOGITS, "pred_masks": MASKS}
        return {"inputs": self.inputs, "outputs": outputs, "panoptic": MASK_MERGING}

    def features(self, images: Images) -> Tensor:
        """See `PanopticModel`; the scores of the classes (Cheng et al. 2021, 2107.06278, section 3.4), at stride 4."""
        outputs = self.outputs(images)
        classes = outputs["pred_logits"].softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, outputs["pred_masks"].sigmoid())

    def candidates(
        self,
        outputs: Mapping[str, Tensor],
        images: Images,
        spec: ModelSpec,  # noqa: ARG002
    ) -> Iterator[Callable[[ModelSpec], Segmentation]]:
        """See `PanopticModel`."""
        found = zip(outputs["pred_logits"], outputs["pred_masks"], images.sizes, images.original_sizes, strict=True)
        for logits, masks, size, original in found:
            kept, scores, labels = likely_queries(logits, LEAST_PROBABILITY)
            rows, columns = (-(-side // STRIDE) for side in size)
            yield partial(merge_queries, QueryMasks(masks[kept, :rows, :columns], scores, labels), size, original)
