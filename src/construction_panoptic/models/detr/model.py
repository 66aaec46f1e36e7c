"""DETR and DETR panoptic (Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020).

Parameter names and shapes are those of the published checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.models.backbones import autocast_on_cpu
from construction_panoptic.models.detr.boxes import Anchors, BoxHead
from construction_panoptic.models.detr.mask_head import CHUNK_PIXELS, MaskAttention, MaskHead
from construction_panoptic.models.detr.transformer import Transformer, sine_position_embedding
from construction_panoptic.models.timm_backbones import build_backbone


@dataclass(frozen=True)
class PanopticFeatures:
    """The detector's outputs (see `Detr.forward`) and all that masks are computed from.

    ``queries`` [B, Q, D] are the output of the last decoder layer, ``memory`` and ``projected`` [B, D, h, w] the
    encoder's output and input, ``pyramid`` the backbone's first three maps, coarsest first. ``padding_mask`` is bool
    [B, h, w], None when there is no padding; ``aux_outputs`` is empty unless all layers were asked for.
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
    def outputs(self) -> dict[str, Any]:
        """What `Detr.forward` gives."""
        outputs: dict[str, Any] = {"pred_logits": self.pred_logits, "pred_boxes": self.pred_boxes}
        return outputs | {"aux_outputs": self.aux_outputs} if self.aux_outputs else outputs


class Detr(nn.Module):
    """DETR: backbone, transformer and the heads for classes and boxes. Build it with `build_detr`."""

    def __init__(self, num_classes: int, settings: DetrSettings, backbone_weights: str | None = None) -> None:
        super().__init__()
        dim = settings.hidden_dim
        self.num_classes, self.num_queries = num_classes, settings.num_queries
        self.dim, self.heads = dim, settings.num_heads
        self.auxiliary_outputs = settings.auxiliary_outputs
        self.transformer = Transformer(settings)
        backbone = build_backbone(
            settings.backbone, norm=settings.norm, dilation=settings.dilation, weights=backbone_weights
        )
        self.channels = backbone.channels
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = BoxHead(dim)
        self.query_embed = nn.Embedding(self.num_queries, dim)
        layers = settings.decoder_layers
        self.anchors = Anchors(self.num_queries, dim, self.heads, layers) if settings.anchors else None
        self.input_proj = nn.Conv2d(self.channels[-1], dim, kernel_size=1)
        # A list of one: the published keys say `backbone.0`.
        self.backbone = nn.ModuleList([backbone])

    def features(
        self, images: Tensor, padding_mask: Tensor | None = None, *, all_layers: bool = False
    ) -> PanopticFeatures:
        """Detect objects in a batch as for `forward`, with ``all_layers`` after each decoder layer.

        Without a mask attention has faster kernels.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], not {tuple(images.shape)}")
        if padding_mask is not None and padding_mask.shape != images[:, 0].shape:
            raise ValueError(f"padding_mask must be {tuple(images[:, 0].shape)}, not {tuple(padding_mask.shape)}")
        maps = self.backbone[0](images)
        if not autocast_on_cpu(images):
            return self._detect(maps, padding_mask, all_layers)
        with torch.autocast("cpu", enabled=False):  # the transformer's many small products are slower in bfloat16
            return self._detect([each.float() for each in maps], padding_mask, all_layers)

    def _detect(self, maps: Sequence[Tensor], padding_mask: Tensor | None, all_layers: bool) -> PanopticFeatures:
        """Detect objects in the backbone's ``maps`` of a batch, finest first."""
        layer1, layer2, layer3, layer4 = maps
        projected = self.input_proj(layer4)
        if padding_mask is None:
            cells = torch.zeros_like(projected[:, 0], dtype=torch.bool)
        else:
            cells = padding_mask = F.interpolate(padding_mask[None].float(), size=projected.shape[-2:])[0].bool()
        position = sine_position_embedding(cells, projected.shape[1])
        all_layers = all_layers and self.auxiliary_outputs
        queries, earlier, memory = self.transformer(
            projected,
            padding_mask,
            self.query_embed.weight,
            position,
            all_layers=all_layers,
            anchors=None if self.anchors is None else (self.anchors, self.bbox_embed),
        )
        logits, boxes = self.class_embed(queries).float(), self.bbox_embed(queries, earlier)
        earlier = zip(logits[:-1], boxes[:-1], strict=True)
        auxiliary = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in earlier]
        pyramid = (layer3, layer2, layer1)
        return PanopticFeatures(logits[-1], boxes[-1], queries[-1], memory, projected, padding_mask, pyramid, auxiliary)

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Any]:
        """Detect objects in ``images``, float [B, 3, H, W], normalised, zero on padding.

        ``padding_mask``, bool [B, H, W], is True on padding; None when there is none. Gives `pred_logits` [B, Q, C + 1]
        (the last class is no-object) and `pred_boxes` [B, Q, 4] (centre x, centre y, width, height in 0…1 of the
        unpadded image), float32. In training mode also `aux_outputs`, a list of the same two for each decoder layer but
        the last, unless switched off. `ValueError` if a shape is another one.
        """
        return self.features(images, padding_mask, all_layers=self.training).outputs


class DetrPanoptic(nn.Module):
    """DETR with a mask for each query. Build it with `build_detr_panoptic`.

    While ``freeze_detector`` holds, the detector's parameters take no gradient, it runs without recording
    one, and it stays in eval mode (no dropout, fixed statistics) even when the model trains.
    """

    def __init__(self, detr: Detr, freeze_detector: bool = True) -> None:
        super().__init__()
        self.detr = detr
        self.freeze_detector = freeze_detector
        self.bbox_attention = MaskAttention(detr.dim, detr.heads, focused=detr.anchors is not None)
        self.mask_head = MaskHead(detr.dim, detr.heads, detr.channels[2::-1])
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
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            return self.detr.features(images, padding_mask, all_layers=self.detr.training)

    def masks(self, features: PanopticFeatures, batch_index: Tensor, query_index: Tensor) -> Tensor:
        """Compute mask logits [N, H / 4, W / 4] over the padded image for pairs of image and query, int64 [N] each.

        Without gradients they are computed in chunks, so that memory stays bounded.
        """
        count = batch_index.shape[0]
        exporting = torch.compiler.is_exporting()  # one program for any number of masks
        if count == 0 and not exporting:  # one mask that is thrown away keeps every parameter in the graph
            first = torch.zeros(1, dtype=torch.int64, device=features.queries.device)
            return self.masks(features, first, first)[:0]
        scores = self.bbox_attention.scores(
            features.queries, features.pred_boxes, features.memory, features.padding_mask
        )
        shared = self.mask_head.shared(features.projected, features.pyramid)

        def compute(batch: Tensor, query: Tensor) -> Tensor:
            return self.mask_head(self.bbox_attention.normalise(scores[batch, query]), shared, batch)

        height, width = features.pyramid[-1].shape[-2:]
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
        return features.outputs | {"pred_masks": masks.unflatten(0, (batch, queries))}


def build_detr(num_classes: int, *, backbone_weights: str | None = None, **architecture: Any) -> Detr:
    """Build a DETR, random but perhaps for its backbone; `ParameterError` for a value that cannot work.

    ``num_classes`` is the highest category id + 1, one more output stands for no-object; ``architecture`` are the
    fields of `DetrSettings`, by default those of the published DETR-R50. ``backbone_weights`` are those of a backbone
    of timm's; see `build_timm_backbone`, also for more errors.
    """
    return Detr(num_classes, parse(DetrSettings, architecture, "model"), backbone_weights)


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
