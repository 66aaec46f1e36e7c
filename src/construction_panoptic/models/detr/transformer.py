"""The encoder-decoder transformer of DETR (section 3.2 and supplementary A.3).

It differs from the original transformer: position embeddings are added to queries and keys of every attention
layer, and the decoder's output after each layer can be read. Everything is batch-first, [B, L, D].
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.config.model import DetrSettings
from construction_panoptic.models.detr.boxes import Anchors, BoxHead, cell_centres

TEMPERATURE = 10_000.0
"""Of the position embedding, the longest wavelength over the shortest."""


class _Layer(nn.Module):
    """What encoder and decoder layers share: attention, the feed-forward block, and where to normalise."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.pre_norm = pre_norm

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm else x

    def _after(self, norm: nn.Module, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.dropout(update)
        return x if self.pre_norm else norm(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


def _attend(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None = None,
    focus: Tensor | None = None,
) -> Tensor:
    if focus is not None:
        if padding_mask is not None:
            focus, padding_mask = focus.masked_fill(padding_mask[:, None, None], -math.inf), None
        focus = focus.flatten(0, 1)
    mixed, _ = attention(query, key, value, key_padding_mask=padding_mask, attn_mask=focus, need_weights=False)
    return mixed


class EncoderLayer(_Layer):
    """Self-attention over the image's cells, then a feed-forward block."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, heads, feedforward_dim, dropout, pre_norm)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Map cells ``x`` [B, S, D] with their ``position`` [B, S, D] to [B, S, D]."""
        value = self._before(self.norm1, x)
        query = value + position
        x = self._after(self.norm1, x, _attend(self.self_attn, query, query, value, padding_mask))
        return self._after(self.norm2, x, self._feed_forward(self._before(self.norm2, x)))


class DecoderLayer(_Layer):
    """Self-attention among the queries, attention to the image's cells, then a feed-forward block."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, heads, feedforward_dim, dropout, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        keys: Tensor,
        padding_mask: Tensor | None,
        focus: Tensor | None = None,
    ) -> Tensor:
        """Map queries ``x`` [B, Q, D] with their ``query_position`` [Q, D] to [B, Q, D].

        ``memory`` [B, S, D] is the encoder's output, ``keys`` the same plus the cells' position; ``focus`` [B, heads,
        Q, S] is added to the logits of the attention to the cells.
        """
        value = self._before(self.norm1, x)
        query = value + query_position
        x = self._after(self.norm1, x, _attend(self.self_attn, query, query, value))
        query = self._before(self.norm2, x) + query_position
        x = self._after(self.norm2, x, _attend(self.multihead_attn, query, keys, memory, padding_mask, focus))
        return self._after(self.norm3, x, self._feed_forward(self._before(self.norm3, x)))


class _Stack(nn.Module):
    """Layers, and the normalisation of what they give."""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class Transformer(nn.Module):
    """DETR's transformer from a feature map and learned queries to the decoded queries."""

    def __init__(self, settings: DetrSettings) -> None:
        super().__init__()
        dim = settings.hidden_dim
        sizes = (dim, settings.num_heads, settings.feedforward_dim, settings.dropout, settings.pre_norm)
        # An encoder that normalises first has a last normalisation.
        last = nn.LayerNorm(dim) if settings.pre_norm else nn.Identity()
        self.encoder = _Stack((EncoderLayer(*sizes) for _ in range(settings.encoder_layers)), last)
        self.decoder = _Stack((DecoderLayer(*sizes) for _ in range(settings.decoder_layers)), nn.LayerNorm(dim))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        features: Tensor,
        padding_mask: Tensor | None,
        query_embedding: Tensor,
        position: Tensor,
        *,
        all_layers: bool = False,
        anchors: tuple[Anchors, BoxHead] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Encode the image's ``features`` [B, D, h, w] and decode the queries, which start from zeros.

        ``padding_mask`` [B, h, w] is True on padding, ``query_embedding`` [Q, D] is learned, ``position`` [B, D, h, w]
        embeds the cells' places; ``anchors`` come with the head that refines them. Gives the queries [L, B, Q, D],
        normalised (L = 1, the last layer, unless ``all_layers``), the boxes that their boxes are counted from [L, B, Q,
        4], None without anchors, and the encoded image [B, D, h, w].
        """
        memory = features.flatten(2).transpose(1, 2)
        position = position.flatten(2).transpose(1, 2).to(features.dtype)
        centres = () if anchors is None else cell_centres(features, padding_mask)
        padding_mask = None if padding_mask is None else padding_mask.flatten(1)
        for layer in self.encoder.layers:
            memory = layer(memory, position, padding_mask)
        memory = self.encoder.norm(memory)
        keys = memory + position
        x = torch.zeros_like(query_embedding, dtype=memory.dtype).expand(memory.shape[0], -1, -1)
        outputs: list[Tensor] = []
        earlier: list[Tensor] = []
        focus = None
        for index, layer in enumerate(self.decoder.layers):
            if anchors is not None:
                learned, box_head = anchors
                boxes = learned(x.shape[0]) if index == 0 else box_head(self.decoder.norm(x), earlier[-1]).detach()
                earlier.append(boxes)
                focus = learned.focus[index](x, boxes, *centres)
            x = layer(x, query_embedding, memory, keys, padding_mask, focus)
            outputs.append(x)
        layers = slice(None) if all_layers else slice(-1, None)
        decoded = self.decoder.norm(torch.stack(outputs[layers]))
        boxes = torch.stack(earlier[layers]) if anchors else None
        return decoded, boxes, memory.transpose(1, 2).unflatten(2, features.shape[-2:])


def sine_position_embedding(padding_mask: Tensor, channels: int) -> Tensor:
    """Give each feature-map cell sines and cosines of its place within the unpadded part of its image.

    Rows and columns are counted over the cells that are not padding and scaled to 0…2π, so that the embedding of an
    image does not depend on the batch that it is padded into (DETR, section 3.2 and supplementary A.4). Of
    ``padding_mask`` [B, h, w], True on padding, it gives float32 [B, D, h, w] with D = ``channels``, a multiple of 4;
    the first half encodes the row, the second the column.
    """
    half = channels // 2
    pairs = torch.arange(half // 2, dtype=torch.float32, device=padding_mask.device)
    wavelengths = TEMPERATURE ** (2 * pairs / half)

    def waves(axis: int) -> Tensor:
        place = (~padding_mask).cumsum(axis, dtype=torch.float32)
        place = place / (place.narrow(axis, -1, 1) + 1e-6) * (2 * math.pi)
        angle = place[..., None] / wavelengths
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(3)

    return torch.cat((waves(1), waves(2)), dim=3).permute(0, 3, 1, 2)
