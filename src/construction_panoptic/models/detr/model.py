"""DETR and DETR panoptic (Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020).

Parameter names and shapes are those of the published checkpoints.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.backbones import Backbone
from construction_panoptic.models.detr.mask_head import CHUNK_PIXELS, MaskAttention, MaskHead
from construction_panoptic.models.detr.transformer import Transformer, sine_position_embedding


class BoxHead(nn.Module):
    """Three linear layers from a decoded query to a box."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries [..., D] to boxes [..., 4] as centre x, centre y, width, height in 0…1."""
        for layer in self.layers[:-1]:
            queries = F.relu(layer(queries))
        return self.layers[-1](queries).float().sigmoid()


@dataclass(frozen=True)
class Encoded:
    """What the detector computes before its heads.

    The decoder's outputs ``decoded`` [L, B, Q, D] (L = 1 unless all layers were asked for), the encoder's output
    ``memory`` and input ``projected`` [B, D, h, w], ``padding_mask`` [B, h, w] bool, None when there is no padding, and
    ``stages``, the backbone's four maps, finest first.
    """

    decoded: Tensor
    memory: Tensor
    projected: Tensor
    padding_mask: Tensor | None
    stages: list[Tensor]


class Detr(nn.Module):
    """DETR: backbone, transformer and the heads for classes and boxes. Build it with `build_detr`."""

    def __init__(
        self,
        backbone: Backbone,
        transformer: Transformer,
        num_classes: int,
        num_queries: int,
        auxiliary_outputs: bool = True,
    ) -> None:
        super().__init__()
        dim = transformer.dim
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.auxiliary_outputs = auxiliary_outputs
        self.transformer = transformer
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = BoxHead(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.input_proj = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        # A list of one: the published keys say `backbone.0`.
        self.backbone = nn.ModuleList([backbone])

    @property
    def channels(self) -> tuple[int, ...]:
        """Widths of the backbone's four maps, finest first."""
        return cast(Backbone, self.backbone[0]).channels

    def encode(self, images: Tensor, padding_mask: Tensor | None = None, *, all_layers: bool = False) -> Encoded:
        """Run backbone and transformer on a batch as for `forward`; without a mask attention has faster kernels."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], not {tuple(images.shape)}")
        if padding_mask is not None and padding_mask.shape != images[:, 0].shape:
            raise ValueError(f"padding_mask must be {tuple(images[:, 0].shape)}, not {tuple(padding_mask.shape)}")
        stages = self.backbone[0](images)
        projected = self.input_proj(stages[-1])
        size = projected.shape[-2:]
        if padding_mask is None:
            cells = torch.zeros((images.shape[0], *size), dtype=torch.bool, device=images.device)
        else:
            cells = padding_mask = F.interpolate(padding_mask[None].float(), size=size)[0].bool()
        position = sine_position_embedding(cells, projected.shape[1])
        decoded, memory = self.transformer(
            projected, padding_mask, self.query_embed.weight, position, all_layers=all_layers
        )
        return Encoded(decoded, memory, projected, padding_mask, stages)

    def predict(self, decoded: Tensor) -> dict[str, Any]:
        """Apply the heads to the decoder's outputs [L, B, Q, D]; with L = 1 there is no `aux_outputs`."""
        logits = self.class_embed(decoded).float()
        boxes = self.bbox_embed(decoded)
        outputs: dict[str, Any] = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if len(decoded) > 1:
            outputs["aux_outputs"] = [
                {"pred_logits": layer_logits, "pred_boxes": layer_boxes}
                for layer_logits, layer_boxes in zip(logits[:-1], boxes[:-1], strict=True)
            ]
        return outputs

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Any]:
        """Detect objects.

        Args:
            images: [B, 3, H, W] float, normalised with ImageNet's mean and standard deviation, zero on padding.
            padding_mask: [B, H, W] bool, True where the pixel is padding; None when there is no padding.

        Gives `pred_logits` [B, Q, C + 1] (the last class is no-object) and `pred_boxes` [B, Q, 4] (centre x, centre y,
        width, height in 0…1 of the unpadded image), float32. In training mode also `aux_outputs`, a list of the same
        two for each decoder layer but the last, unless switched off. `ValueError` if a shape is another one.
        """
        all_layers = self.training and self.auxiliary_outputs
        return self.predict(self.encode(images, padding_mask, all_layers=all_layers).decoded)


@dataclass(frozen=True)
class PanopticFeatures:
    """The detector's outputs (see `Detr.forward`) and all that its masks are computed from.

    ``queries`` [B, Q, D] are the output of the last decoder layer, ``pyramid`` the backbone's first three maps,
    coarsest first; ``memory``, ``projected`` and ``padding_mask`` are as in `Encoded`.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    queries: Tensor
    memory: Tensor
    projected: Tensor
    padding_mask: Tensor | None
    pyramid: tuple[Tensor, Tensor, Tensor]
    aux_outputs: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks: those of the finest map, a quarter of the image's, rounded up."""
        height, width = self.pyramid[-1].shape[-2:]
        return height, width


class DetrPanoptic(nn.Module):
    """DETR with a mask for each query. Build it with `build_detr_panoptic`.

    While ``freeze_detector`` holds, the detector's parameters take no gradient, it runs without recording
    one, and it stays in eval mode (no dropout, fixed statistics) even when the model trains.
    """

    def __init__(self, detr: Detr, freeze_detector: bool = True) -> None:
        super().__init__()
        self.detr = detr
        self.freeze_detector = freeze_detector
        dim, heads = detr.transformer.dim, detr.transformer.heads
        layer1, layer2, layer3, _ = detr.channels
        self.bbox_attention = MaskAttention(dim, heads)
        self.mask_head = MaskHead(dim, heads, (layer3, layer2, layer1))
        if freeze_detector:
            detr.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DetrPanoptic":
        """Set training mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if self.freeze_detector:
            self.detr.eval()
        return self

    def features(self, images: Tensor, padding_mask: Tensor | None = None) -> PanopticFeatures:
        """Run the detector; arguments as `Detr.forward`."""
        all_layers = self.detr.training and self.detr.auxiliary_outputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            encoded = self.detr.encode(images, padding_mask, all_layers=all_layers)
            outputs = self.detr.predict(encoded.decoded)
        layer1, layer2, layer3, _ = encoded.stages
        return PanopticFeatures(
            pred_logits=outputs["pred_logits"],
            pred_boxes=outputs["pred_boxes"],
            queries=encoded.decoded[-1],
            memory=encoded.memory,
            projected=encoded.projected,
            padding_mask=encoded.padding_mask,
            pyramid=(layer3, layer2, layer1),
            aux_outputs=outputs.get("aux_outputs", []),
        )

    def masks(self, features: PanopticFeatures, batch_index: Tensor, query_index: Tensor) -> Tensor:
        """Compute mask logits [N, H / 4, W / 4] over the padded image for pairs of image and query, int64 [N] each.

        Without gradients they are computed in chunks, so that memory stays bounded.
        """
        count = batch_index.shape[0]
        exporting = torch.compiler.is_exporting()  # one program for any number of masks
        if count == 0 and not exporting:  # one mask that is thrown away keeps every parameter in the graph
            first = torch.zeros(1, dtype=torch.int64, device=features.queries.device)
            return self.masks(features, first, first)[:0]
        scores = self.bbox_attention.scores(features.queries, features.memory, features.padding_mask)
        shared = self.mask_head.shared(features.projected, features.pyramid)

        def compute(batch: Tensor, query: Tensor) -> Tensor:
            return self.mask_head(self.bbox_attention.normalise(scores[batch, query]), shared, batch)

        height, width = features.mask_size
        chunk = max(1, CHUNK_PIXELS // (height * width))
        if torch.is_grad_enabled() or exporting or count <= chunk:
            return compute(batch_index, query_index)
        pairs = zip(batch_index.split(chunk), query_index.split(chunk), strict=True)
        return torch.cat([compute(batch, query) for batch, query in pairs])

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Any]:
        """Detect objects and compute the mask of every query.

        Gives what `Detr.forward` gives (`aux_outputs` only when the detector is trained too) and `pred_masks`
        [B, Q, H / 4, W / 4], mask logits over the padded image.
        """
        features = self.features(images, padding_mask)
        (batch, queries), device = features.queries.shape[:2], features.queries.device
        batch_index = torch.arange(batch, device=device).repeat_interleave(queries)
        masks = self.masks(features, batch_index, torch.arange(queries, device=device).repeat(batch))
        outputs: dict[str, Any] = {
            "pred_logits": features.pred_logits,
            "pred_boxes": features.pred_boxes,
            "pred_masks": masks.unflatten(0, (batch, queries)),
        }
        if features.aux_outputs:
            outputs["aux_outputs"] = features.aux_outputs
        return outputs


def build_detr(num_classes: int, **architecture: Any) -> Detr:
    """Build a DETR with random weights; `ParameterError` for a value that cannot work.

    ``num_classes`` is the highest category id + 1, one more output stands for no-object; ``architecture`` are the
    fields of `DetrSettings`, by default those of the published DETR-R50.
    """
    if num_classes < 1:
        raise ParameterError(f"num_classes: {num_classes} must be at least 1.")
    settings = parse(DetrSettings, architecture, "model")
    transformer = Transformer(
        dim=settings.hidden_dim,
        heads=settings.num_heads,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        feedforward_dim=settings.feedforward_dim,
        dropout=settings.dropout,
        pre_norm=settings.pre_norm,
    )
    backbone = Backbone(settings.backbone, norm=settings.norm, dilation=settings.dilation)
    return Detr(backbone, transformer, num_classes, settings.num_queries, settings.auxiliary_outputs)


def build_detr_panoptic(
    num_classes: int, *, freeze_detector: bool = True, attention_gain: float = 1.0, **architecture: Any
) -> DetrPanoptic:
    """Build a DETR panoptic with random weights; see `build_detr` for the other arguments and errors.

    With ``freeze_detector`` the mask branch trains alone, the detector is fixed and in eval mode. ``attention_gain``
    multiplies the initial weights that read the attention maps, see `MaskHead.amplify_attention`; 1 is as published.
    """
    model = DetrPanoptic(build_detr(num_classes, **architecture), freeze_detector)
    model.mask_head.amplify_attention(attention_gain)
    return model


def compile_detector(detector: Detr) -> None:
    """Compile backbone and transformer with `torch.compile`, in place; names and weights stay as they are.

    The code is generated at the first batch, for images of any size, which takes minutes; on a CPU that needs a C++
    compiler. Results differ from those of eager mode by rounding.
    """
    for part in (detector.backbone[0], detector.transformer):
        part.compile(dynamic=True)
