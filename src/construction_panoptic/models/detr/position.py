"""Sine position embedding of a feature map (DETR, section 3.2 and supplementary A.4)."""

import math

import torch
from torch import Tensor


def sine_position_embedding(padding_mask: Tensor, channels: int, temperature: float = 10_000.0) -> Tensor:
    """Give each feature-map cell sines and cosines of its place within the unpadded part of its image.

    Rows and columns are counted over the cells that are not padding and scaled to 0…2π, so that the embedding of an
    image does not depend on the batch that it is padded into (DETR, section 3.2 and supplementary A.4).

    Args:
        padding_mask: [B, h, w] bool, True where the cell is padding.
        channels: length D, a multiple of 4; the first half encodes the row, the second the column.
        temperature: longest wavelength over the shortest.

    Returns:
        [B, D, h, w] float32.
    """
    inside = ~padding_mask
    rows = inside.cumsum(1, dtype=torch.float32)
    columns = inside.cumsum(2, dtype=torch.float32)
    epsilon = 1e-6
    rows = rows / (rows[:, -1:, :] + epsilon) * (2 * math.pi)
    columns = columns / (columns[:, :, -1:] + epsilon) * (2 * math.pi)

    half = channels // 2
    pairs = torch.arange(half // 2, dtype=torch.float32, device=padding_mask.device)
    wavelengths = temperature ** (2 * pairs / half)

    def waves(place: Tensor) -> Tensor:
        angle = place[..., None] / wavelengths
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(3)

    return torch.cat((waves(rows), waves(columns)), dim=3).permute(0, 3, 1, 2)
