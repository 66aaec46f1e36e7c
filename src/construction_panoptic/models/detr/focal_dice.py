"""Focal and Dice sums of masks with their gradient written out, in little memory.

Left to autograd, the upsampled logits and a dozen maps of their size are written, kept and read again. Here a few masks
at a time are upsampled and summed up, and once more for the gradient, so that a map stays in the processor's cache and
nothing larger than the logits themselves is kept.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_PIXELS = {"cpu": 2**20, "cuda": 2**26}
"""Upsampled pixels worked on at a time."""


class FocalDice(torch.autograd.Function):
    """Sums over the pixels of each mask: of the focal loss, of p y, and of p + y, with p = sigmoid(x).

    With the upsampled logit x, the truth y in {0, 1} and z = (1 - 2 y) x, the error is q = |y - p| = sigmoid(z). The
    focal loss with γ = 2 is a q² softplus(z), where a is α for y = 1 and 1 - α for y = 0 (Lin et al., "Focal Loss for
    Dense Object Detection", ICCV 2017, section 3.2). Its derivative by x is (1 - α - y) q² (q + 2 (1 - q) softplus(z)),
    and that of p is q (1 - q).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """Three sums [M] of ``logits`` float [M, h, w] and ``truth`` bool [M, H, W]; ``alpha`` weighs y = 1."""
        ctx.save_for_backward(logits, truth)
        ctx.alpha = alpha
        sums = logits.new_empty(3, len(logits))
        for part in _chunks(truth):
            y, z = _truth_and_error_logits(logits[part], truth[part])
            q = torch.sigmoid(z)
            focal = F.softplus(z).mul_(q).mul_(q)
            sums[0, part] = (1 - alpha) * _sum(focal) + (2 * alpha - 1) * _dot(focal, y)
            missed, area = _dot(q, y), _sum(y)
            sums[1, part] = area - missed
            sums[2, part] = 2 * (area - missed) + _sum(q)
        return cast(tuple[Tensor, Tensor, Tensor], sums.unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_focal: Tensor, of_overlap: Tensor, of_areas: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the logits from those of the three sums, each [M]."""
        logits, truth = ctx.saved_tensors
        of_focal, of_overlap, of_areas = (x[:, None, None] for x in (of_focal, of_overlap, of_areas))
        gradient = torch.empty_like(logits)
        for part in _chunks(truth):
            y, z = _truth_and_error_logits(logits[part], truth[part])
            q = torch.sigmoid(z)
            right = 1 - q
            focal = torch.addcmul(q, right, F.softplus(z), value=2).mul_(q)
            focal.mul_(torch.addcmul((1 - ctx.alpha) * of_focal[part], y, -of_focal[part]))
            dice = torch.addcmul(of_areas[part], y, of_overlap[part])
            upsampled = focal.addcmul_(dice, right).mul_(q)
            gradient[part] = _upsampling_transposed(upsampled, logits[part])
        return gradient, None, None


def _chunks(truth: Tensor) -> list[slice]:
    """Masks to work on together: so many that each thread has one, and more where they are small."""
    pixels = max(truth.shape[-2] * truth.shape[-1], 1)
    step = max(CHUNK_PIXELS.get(truth.device.type, 2**20) // pixels, torch.get_num_threads())
    return [slice(start, start + step) for start in range(0, len(truth), step)]


def _truth_and_error_logits(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """y and z of `FocalDice`, float [N, H, W]."""
    x = F.interpolate(logits[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    y = truth.to(x.dtype)
    return y, torch.addcmul(x, x, y, value=-2)


def _upsampling_transposed(gradient: Tensor, logits: Tensor) -> Tensor:
    size, input_size = list(gradient.shape[-2:]), [len(logits), 1, *logits.shape[-2:]]
    return torch.ops.aten.upsample_bilinear2d_backward(gradient[:, None], size, input_size, False)[:, 0]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.linalg.vecdot(first.flatten(1), second.flatten(1))


def _sum(maps: Tensor) -> Tensor:
    return maps.flatten(1).sum(1)
