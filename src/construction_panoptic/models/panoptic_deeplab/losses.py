"""The three losses of Panoptic-DeepLab; void, crowds and padding take part in none."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.config.training import DeeplabLossSettings
from construction_panoptic.models.panoptic_deeplab.network import SEMANTIC_STRIDE
from construction_panoptic.models.panoptic_deeplab.targets import IGNORED, Targets


def deeplab_losses(outputs: Mapping[str, Tensor], targets: Targets, settings: DeeplabLossSettings) -> dict[str, Tensor]:
    """Compute the sums of the losses of what `PanopticDeeplab` gives for a batch; `normalisers` has what divides them.

    ``semantic``: cross-entropy of the hardest pixels; ``center``: squared error of the heat, over the cells that take
    part; ``offset``: L1 distance to the true offset, over the cells of things.
    """
    heat = outputs["center"].float().sigmoid()
    return {
        "semantic": semantic_loss(outputs["semantic"], targets, settings.hardest_fraction),
        "center": ((heat - targets.center).square() * targets.center_weight).sum(),
        "offset": ((outputs["offset"].float() - targets.offset).abs().sum(1) * targets.offset_weight).sum(),
    }


def normalisers(targets: Targets, settings: DeeplabLossSettings) -> dict[str, float]:
    """What the sums are divided by: hardest pixels, cells that take part, cells of things; of parts they add up."""
    counts = {
        "semantic": _hardest_counts(targets.semantic != IGNORED, settings.hardest_fraction).sum(),
        "center": targets.center_weight.sum(),
        "offset": targets.offset_weight.sum(),
    }
    return {name: float(count) for name, count in counts.items()}


def semantic_loss(logits: Tensor, targets: Targets, hardest_fraction: float) -> Tensor:
    """Sum of the weighted cross-entropy over the hardest pixels of each image.

    That it is each image's own hardest pixels makes the loss of a batch the sum of those of its parts. ``logits`` are
    [B, C, H / 2, W / 2], ``hardest_fraction`` is of the pixels that take part, rounded up.
    """
    height, width = targets.semantic.shape[-2:]
    # Filled up to a vector of the processor: with fewer classes torch's softmax of rows takes five times as long.
    logits = F.pad(logits.float(), (0, 0, 0, 0, 0, max(0, 16 - logits.shape[1])), value=-1e4)
    full = F.interpolate(logits, scale_factor=SEMANTIC_STRIDE, mode="bilinear", align_corners=False)
    # As rows [B H W, C], since the cross-entropy of maps of many classes is slow.
    pixels = full[..., :height, :width].permute(0, 2, 3, 1).flatten(0, 2)
    losses = F.cross_entropy(pixels, targets.semantic.flatten(), ignore_index=IGNORED, reduction="none")
    losses = (losses * targets.semantic_weight.flatten()).view(len(logits), -1)
    if hardest_fraction == 1.0:  # without sorting them all
        return losses.sum()
    counts = _hardest_counts(targets.semantic != IGNORED, hardest_fraction)
    hardest = losses.topk(int(counts.max()), dim=1).values
    return (hardest * (torch.arange(hardest.shape[1], device=counts.device) < counts[:, None])).sum()


def _hardest_counts(valid: Tensor, hardest_fraction: float) -> Tensor:
    return (valid.flatten(1).sum(1) * hardest_fraction).ceil().long()
