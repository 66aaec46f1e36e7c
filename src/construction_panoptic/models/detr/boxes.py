"""The boxes of DETR's queries: their head and, as an option, anchors.

A query of DETR learns in hundreds of epochs where to look. One with an anchor starts there: its attention to the image
is a Gaussian (SMCA: Gao et al. 2021, 2101.07448) as wide and high as its box (DAB-DETR: Liu et al. 2022, 2201.12329),
which each decoder layer refines for the next (Deformable DETR: Zhu et al. 2021, 2010.04159). Boxes are centre x, centre
y, width and height in 0…1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SIZE = 0.1
"""Of a box that a query looks at, fraction of the image: a Gaussian much smaller than a cell would see nothing."""
MARGIN = 1e-4  # of a coordinate to 0 and 1, where its logit would be infinite


class BoxHead(nn.Module):
    """Three linear layers from a decoded query to a box."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, queries: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Map queries [..., D] to boxes [..., 4]; what the layers give is added to the ``earlier`` boxes' logits."""
        for layer in self.layers[:-1]:
            queries = F.relu(layer(queries))
        logits = self.layers[-1](queries).float()
        return (logits if earlier is None else logits + earlier.logit(MARGIN)).sigmoid()


class Focus(nn.Module):
    """Where the attention heads of a decoder layer look: how far from the box's centre, and how widely."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.offset = nn.Linear(dim, 2 * heads)
        self.scale = nn.Linear(dim, 2 * heads)
        for layer in (self.offset, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        with torch.no_grad():  # at first each head looks into its own direction
            self.offset.bias.copy_(0.3 * torch.stack((angle.cos(), angle.sin()), -1).flatten())

    def forward(self, queries: Tensor, boxes: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        """Give the logarithm of each head's Gaussian [B, heads, Q, h * w], to be added to the attention's logits.

        ``queries`` are [B, Q, D], their ``boxes`` [B, Q, 4], ``columns`` [B, w] and ``rows`` [B, h] the cells' centres.
        """
        offset, scale = (layer(queries).float().unflatten(-1, (self.heads, 2)) for layer in (self.offset, self.scale))
        half = boxes[:, :, None, 2:] / 2
        centre = boxes[:, :, None, :2] + offset * half
        deviation = half.clamp(min=LEAST_SIZE / 2) * scale.clamp(-3, 3).exp()
        x, y = (
            -0.5 * ((cells[:, None, None] - centre[..., axis, None]) / deviation[..., axis, None]) ** 2
            for axis, cells in enumerate((columns, rows))
        )
        return (y[..., :, None] + x[..., None, :]).flatten(-2).transpose(1, 2)


class Anchors(nn.Module):
    """A learned box for each query, where it starts, and the focus of each decoder layer."""

    def __init__(self, num_queries: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((num_queries, 4), 0.4))
        self.focus = nn.ModuleList(Focus(dim, heads) for _ in range(layers))
        with torch.no_grad():
            self.logits[:, :2].uniform_(0.05, 0.95)
            self.logits.logit_()

    def forward(self, batch: int) -> Tensor:
        """Give the boxes [B, Q, 4] that the first layer looks at."""
        return self.logits.sigmoid().expand(batch, -1, -1)


def cell_centres(features: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give the centres of the columns [B, w] and rows [B, h] of ``features`` [B, D, h, w], in 0…1 of the image.

    ``padding_mask`` [B, h, w] is True on padding, which is no part of the image.
    """
    image = torch.ones_like(features[:, 0], dtype=torch.bool) if padding_mask is None else ~padding_mask
    columns, rows = (image.any(dim).cumsum(1, dtype=torch.float32) for dim in (1, 2))
    return (columns - 0.5) / columns[:, -1:], (rows - 0.5) / rows[:, -1:]
