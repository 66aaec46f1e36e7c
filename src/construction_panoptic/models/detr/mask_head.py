"""The mask branch of DETR panoptic (section 4.4): attention maps of the queries, then a convolutional head.

Both parts work on (image, query) *pairs*, so that only the masks that are asked for are computed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.models.detr.boxes import Focus, cell_centres

CHUNK_PIXELS = 2_000_000
"""Mask pixels computed at a time when no gradient is needed: about 1 GiB of activations in float32."""


class MaskAttention(nn.Module):
    """Multi-head attention maps of queries over the encoded image, without values; focused on boxes, if wanted."""

    def __init__(self, dim: int, heads: int, focused: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.focus = Focus(dim, heads) if focused else None
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)
        for layer in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def scores(self, queries: Tensor, boxes: Tensor, memory: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Scaled dot products of all queries with all cells, -inf on padding: [B, Q, heads, h, w].

        ``queries`` [B, Q, D] are the decoder's output, ``boxes`` [B, Q, 4] theirs, ``memory`` [B, D, h, w] is the
        encoder's output; ``padding_mask`` [B, h, w] is True on padding, None where there is none.
        """
        head_dim = queries.shape[-1] // self.heads
        q = (self.q_linear(queries) * head_dim**-0.5).unflatten(-1, (self.heads, head_dim)).transpose(1, 2)
        k = F.linear(memory.flatten(2).transpose(1, 2), self.k_linear.weight, self.k_linear.bias)
        k = k.unflatten(-1, (self.heads, head_dim)).permute(0, 2, 3, 1)
        scores = q @ k
        if self.focus is not None:
            scores = scores + self.focus(queries, boxes, *cell_centres(memory, padding_mask))
        scores = scores.transpose(1, 2).unflatten(-1, memory.shape[-2:])
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None, None], -math.inf)
        return scores

    @staticmethod
    def normalise(scores: Tensor) -> Tensor:
        """Softmax of [N, heads, h, w] over heads and cells together: one pair's maps sum to 1."""
        return scores.flatten(1).softmax(dim=-1).view_as(scores)


class MaskHead(nn.Module):
    """Convolutions with group normalisation that bring a pair's features to stride 4 as an FPN does.

    ``dim`` is the width D of the projected image features, ``heads`` the number of attention maps a query, and
    ``pyramid_channels`` are the widths of three backbone maps, coarsest first.
    """

    def __init__(self, dim: int, heads: int, pyramid_channels: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        widths = [dim + heads, dim // 2, dim // 4, dim // 8, dim // 16]
        self.lay1, self.gn1 = _conv_norm(widths[0], widths[0])
        self.lay2, self.gn2 = _conv_norm(widths[0], widths[1])
        self.lay3, self.gn3 = _conv_norm(widths[1], widths[2])
        self.lay4, self.gn4 = _conv_norm(widths[2], widths[3])
        self.lay5, self.gn5 = _conv_norm(widths[3], widths[4])
        self.out_lay = nn.Conv2d(widths[4], 1, 3, padding=1)
        self.adapter1 = nn.Conv2d(pyramid_channels[0], widths[1], 1)
        self.adapter2 = nn.Conv2d(pyramid_channels[1], widths[2], 1)
        self.adapter3 = nn.Conv2d(pyramid_channels[2], widths[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def amplify_attention(self, gain: float) -> None:
        """Multiply by ``gain`` the first convolution's weights that read the attention maps.

        A query's maps sum to 1 over all heads and cells, so each value is thousands of times smaller than the image
        features beside it, and masks of different queries start out nearly equal. Untrained heads learn sooner from a
        larger start.
        """
        self.lay1.weight[:, self.dim :] *= gain

    def shared(self, projected: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Compute the part of the head that does not depend on the query, once an image.

        A convolution of a sum, or of stacked channels, is the sum of the convolutions of its parts. So of ``projected``
        [B, D, h, w] and the backbone's maps [B, C_i, h_i, w_i], coarsest first, it gives the image's part of the
        convolutions 1, 3, 4 and 5.
        """
        first = F.conv2d(projected, self.lay1.weight[:, : self.dim], self.lay1.bias, padding=1)
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        convolutions = (self.lay3, self.lay4, self.lay5)
        levels = zip(adapters, convolutions, pyramid, strict=True)
        maps = [first, *(conv(adapter(level)) for adapter, conv, level in levels)]
        return [x.contiguous(memory_format=_layout(x)) for x in maps]

    def forward(self, attention: Tensor, shared: Sequence[Tensor], batch_index: Tensor) -> Tensor:
        """Compute mask logits [N, H / 4, W / 4], the size of the finest backbone map, for N pairs.

        ``attention`` [N, heads, h, w] are the pairs' attention maps, ``shared`` is what `shared` gave for the batch,
        and ``batch_index`` int64 [N] says each pair's image in the batch.
        """
        first, *levels = shared
        x = attention.contiguous(memory_format=_layout(attention))
        x = F.conv2d(x, self.lay1.weight[:, self.dim :], padding=1) + _of_images(first, batch_index)
        x = F.relu(self.gn1(x))
        x = F.relu(self.gn2(self.lay2(x)))
        steps = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for level, (conv, norm) in zip(levels, steps, strict=True):
            x = _upsample_and_convolve(x, conv.weight, level.shape[-2:]) + _of_images(level, batch_index)
            x = F.relu(norm(x))
        return self.out_lay(x).squeeze(1)


def _conv_norm(inputs: int, outputs: int) -> tuple[nn.Conv2d, nn.GroupNorm]:
    # Eight groups, or as many as divide a narrower model's channels.
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(math.gcd(8, outputs), outputs)


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last on a CPU, where it is faster; group normalisation on a GPU would undo it."""
    return torch.channels_last if x.device.type == "cpu" else torch.contiguous_format


def _of_images(x: Tensor, batch_index: Tensor) -> Tensor:
    """Each pair's map, [N, C, h, w] from [B, C, h, w]: ``x[batch_index]``, keeping the memory layout."""
    if x.is_contiguous():
        return x.index_select(0, batch_index)
    return x.permute(0, 2, 3, 1).index_select(0, batch_index).permute(0, 3, 1, 2)


def _upsample_and_convolve(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Bring ``x`` [N, C, h, w] to ``size`` by nearest neighbour and convolve it with ``weight`` [K, C, 3, 3].

    A backbone halves sizes and rounds up, so ``size`` is 2 h or 2 h - 1 by 2 w or 2 w - 1. Then both together are one
    transposed convolution with a 4 x 4 kernel: the upsampled map is never written, and each output needs 4 products a
    channel instead of 9. An exported program takes the general way, since it has to serve any size.
    """
    height, width = size
    halved = (side > 1 and 2 * cells - side in (0, 1) for cells, side in zip(x.shape[-2:], size, strict=True))
    if torch.compiler.is_exporting() or not all(halved):
        return F.conv2d(F.interpolate(x, size=(height, width), mode="nearest"), weight, padding=1)
    kernel = _pair_sums(_pair_sums(weight, -1), -2)
    out = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)[..., :height, :width]
    # At an odd end the transposed convolution saw the last cell twice, where there is the padding's zero.
    if height % 2:
        rows = F.interpolate(x[..., -2:, :], size=(2, width), mode="nearest")
        out[..., -1:, :] = F.conv2d(rows, weight[..., :2, :], padding=(0, 1))
    if width % 2:
        columns = F.interpolate(x[..., -2:], size=(height, 2), mode="nearest")
        out[..., -1:] = F.conv2d(columns, weight[..., :2], padding=(1, 0))
    return out


def _pair_sums(weight: Tensor, dim: int) -> Tensor:
    """Taps of a transposed convolution of stride 2, from those of a convolution of cells that stand twice."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)
