"""The three losses; void, crowds and padding take part in none."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.models.panoptic_deeplab.network import SEMANTIC_STRIDE
from construction_panoptic.models.panoptic_deeplab.settings import LossSettings
from construction_panoptic.models.panoptic_deeplab.targets import IGNORED, Targets


class LossTerm(NamedTuple):
    """One term of the loss: ``weight * sum / normaliser``; sums and normalisers of parts of a batch add up."""

    sum: Tensor
    normaliser: float
    weight: float


def normalisers(targets: Targets, settings: LossSettings) -> dict[str, float]:
    """What the sums of the losses of a batch are divided by: pixels, cells, cells of things."""
    valid = (targets.semantic != IGNORED).flatten(1).sum(1)
    return {
        "semantic": float(_hardest_counts(valid, settings.hardest).sum()),
        "center": float(targets.center_weight.sum()),
        "offset": float(targets.offset_weight.sum()),
    }


def losses(outputs: dict[str, Tensor], targets: Targets, settings: LossSettings) -> dict[str, LossTerm]:
    sums = {
        "semantic": semantic_loss(outputs["semantic"], targets, settings.hardest),
        "center": ((outputs["center"].float().sigmoid() - targets.center).square() * targets.center_weight).sum(),
        "offset": ((outputs["offset"].float() - targets.offset).abs().sum(1) * targets.offset_weight).sum(),
    }
    counts = normalisers(targets, settings)
    return {name: LossTerm(value, counts[name], getattr(settings, name)) for name, value in sums.items()}


def semantic_loss(logits: Tensor, targets: Targets, hardest: float) -> Tensor:
    """Sum of the weighted cross-entropy over the hardest fraction of each image's pixels that take part.

    All pixels are looked at without gradient, the hardest alone with it, which halves the time.
    """
    height, width = targets.semantic.shape[-2:]
    # The same number off all logits of a cell changes no probability, and lets exp do without each pixel's maximum.
    shifted = logits.float() - logits.detach().float().amax(1, keepdim=True)
    full = F.interpolate(shifted, scale_factor=SEMANTIC_STRIDE, mode="bilinear", align_corners=False)
    full = full.permute(0, 2, 3, 1)[:, :height, :width]  # [B, H, W, C]
    valid = targets.semantic != IGNORED
    counts = _hardest_counts(valid.flatten(1).sum(1), hardest)
    with torch.no_grad():
        chosen = torch.where(valid, targets.semantic, 0)
        each = full.exp().sum(-1).log() - full.gather(-1, chosen[..., None])[..., 0]
        each = (each * targets.semantic_weight).where(valid, -1.0).flatten(1)
        index = each.topk(int(counts.max()), dim=1).indices
        index = (index + each.shape[1] * torch.arange(len(index), device=index.device)[:, None])[
            torch.arange(index.shape[1], device=index.device) < counts[:, None]
        ]
    rows = full.reshape(-1, full.shape[-1])[index]
    losses = F.cross_entropy(rows, targets.semantic.flatten()[index], reduction="none")
    return (losses * targets.semantic_weight.flatten()[index]).sum()


def _hardest_counts(valid: Tensor, hardest: float) -> Tensor:
    return (valid * hardest).ceil().long()
