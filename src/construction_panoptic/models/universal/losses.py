"""The losses of mask classification; void, crowds and padding take part in none.

Sources: Cheng et al. 2022 (Mask2Former, 2112.01527), whose terms and weights these are. Of a mask all cells of the
network's own map count, not points drawn at random: so the loss of a batch is the sum of those of its parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from construction_panoptic.config.training import UniversalLossSettings
from construction_panoptic.models.universal.network import STRIDE


@dataclass(frozen=True)
class Truth:
    """The segments of an image: ``labels`` int64 [N]; ``masks`` float32 [N, h, w], 1 where a cell's middle pixel is the
    segment's; ``known`` bool [h, w], True on all of them.
    """

    labels: Tensor
    masks: Tensor
    known: Tensor


@torch.no_grad()
def truth_of(target: Mapping[str, Tensor], size: tuple[int, int]) -> Truth:
    """Make the truth of an image in a padded batch of the ``size`` (H, W).

    ``target`` has ``id_map`` int32 [height, width], and of the segments that take part ``segment_ids`` int64 [N] and
    ``labels`` int64 [N]; pixels of other ids are void or of crowds.
    """
    id_map = target["id_map"]
    padded = F.pad(id_map, (0, size[1] - id_map.shape[1], 0, size[0] - id_map.shape[0]))
    cells = padded[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    rows, columns = (-(-side // STRIDE) for side in size)
    cells = F.pad(cells, (0, columns - cells.shape[1], 0, rows - cells.shape[0]))
    masks = cells == target["segment_ids"][:, None, None]
    seen = masks.flatten(1).any(1)  # a segment between the cells' middles cannot be learnt
    return Truth(target["labels"][seen], masks[seen].float(), masks.any(0))


def query_counts(truths: Sequence[Truth], queries: int, no_object: float) -> float:
    """The sum of the weights of all queries' classes, were every segment matched."""
    matched = [min(len(truth.labels), queries) for truth in truths]
    return sum(count + no_object * (queries - count) for count in matched)


def layer_losses(
    outputs: Mapping[str, Tensor], truths: Sequence[Truth], settings: UniversalLossSettings
) -> dict[str, Tensor]:
    """Compute the sums of the losses of one layer, ``outputs`` of `Universal.layers`, over a batch.

    ``ce``: cross-entropy of the classes of all queries; those without a segment shall be no object, with the weight
    ``no_object``, unless most of what they mask is void. ``mask`` and ``dice``: binary cross-entropy, mean over the
    known cells, and Dice loss of the masks of matched queries. The weights are the matching's costs too.
    `FloatingPointError`: an output is not finite.
    """
    sums = {name: outputs["pred_logits"].sum() * 0.0 for name in ("ce", "mask", "dice")}
    for logits, masks, truth in zip(outputs["pred_logits"], outputs["pred_masks"], truths, strict=True):
        nothing = logits.shape[-1] - 1
        cells = masks[:, truth.known]  # [Q, P]
        true_cells = truth.masks[:, truth.known]  # [N, P]
        queries, segments = match(logits, cells, truth.labels, true_cells, settings)
        classes = torch.full_like(logits[:, 0], nothing, dtype=torch.int64)
        classes[queries] = truth.labels[segments]
        with torch.no_grad():
            inside = masks > 0
            in_void = (inside & ~truth.known).flatten(1).sum(1) * 2 > inside.flatten(1).sum(1)
            weight = torch.where(in_void, 0.0, settings.no_object)
            weight[queries] = 1.0
        each = F.cross_entropy(logits, classes, reduction="none")
        sums["ce"] = sums["ce"] + (each * weight).sum()
        if len(queries):
            own, true = cells[queries], true_cells[segments]
            mean = F.binary_cross_entropy_with_logits(own, true, reduction="none").mean(1)
            probability = own.sigmoid()
            overlap = 2 * (probability * true).sum(1) + 1
            sums["mask"] = sums["mask"] + mean.sum()
            sums["dice"] = sums["dice"] + (1 - overlap / (probability.sum(1) + true.sum(1) + 1)).sum()
    return sums


@torch.no_grad()
def match(
    logits: Tensor, cells: Tensor, labels: Tensor, true_cells: Tensor, settings: UniversalLossSettings
) -> tuple[Tensor, Tensor]:
    """Assign segments to queries at the least cost in all (Hungarian matching); a query has one segment at most.

    Of ``logits`` of classes [Q, C + 1], ``cells``, logits of masks in P cells [Q, P], and the segments' ``labels``
    int64 [N] and masks, ``true_cells`` float [N, P], it gives the indices of queries and of their segments, int64
    [min(Q, N)].
    """
    count = max(1, cells.shape[1])
    probability = cells.sigmoid()
    # Of a cell, the cross-entropy of 1 is softplus(-x), that of 0 softplus(x), which is x more.
    cross_entropy = (F.softplus(cells).sum(1, keepdim=True) - cells @ true_cells.T) / count
    dice = 1 - (2 * probability @ true_cells.T + 1) / (probability.sum(1, keepdim=True) + true_cells.sum(1) + 1)
    cost = settings.mask * cross_entropy + settings.dice * dice - settings.ce * logits.softmax(-1)[:, labels]
    if not bool(cost.isfinite().all() & logits.isfinite().all()):
        raise FloatingPointError("the model's outputs are not finite")
    queries, segments = linear_sum_assignment(cost.float().cpu().numpy())
    return torch.as_tensor(queries, device=logits.device), torch.as_tensor(segments, device=logits.device)
