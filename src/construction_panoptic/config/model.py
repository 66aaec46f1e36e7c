"""The architecture of each kind of model; the number of classes follows from the taxonomy.

Of Panoptic-DeepLab, "published" is Cheng et al. 2020 (arXiv 1911.10194). A cell is a place of its maps, four by four
pixels.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from construction_panoptic.config.base import Fraction, PositiveInt, Settings, Threshold

Merging = Annotated[
    Literal["pixels", "masks"],
    Field(
        description="How masks become one segmentation: each pixel to the highest mask (DETR), or whole masks by "
        "falling quality (Panoptic SegFormer)."
    ),
]

_BACKBONES = ("tiny", "resnet18", "resnet34", "resnet50", "resnet101")


def _known(backbone: str) -> str:
    if backbone not in _BACKBONES and not backbone.startswith("timm/"):
        raise ValueError(f"{backbone!r} is unknown; choose {', '.join(_BACKBONES)}, or timm/<name>")
    return backbone


BackboneName = Annotated[str, AfterValidator(_known)]


class DetrSettings(Settings):
    """The network's size and parts; the number of classes follows from the taxonomy."""

    backbone: BackboneName = "resnet50"
    """Feature extractor: tiny (for trials on a CPU), resnet18 … resnet101, or timm/<name>."""
    dilation: bool = False
    """Dilated last stage of a ResNet-50 or 101 (DETR's DC5): stride 16 instead of 32."""
    norm: Literal["frozen", "batch"] = "frozen"
    """Batch normalisation: 'frozen' statistics as in DETR, or trained ('batch')."""
    num_queries: PositiveInt = 100
    """Object queries, the most segments found in an image."""
    hidden_dim: PositiveInt = 256
    """Width of the transformer, channels."""
    num_heads: PositiveInt = 8
    """Attention heads; must divide hidden_dim."""
    encoder_layers: Annotated[int, Field(ge=0)] = 6
    """Transformer encoder layers."""
    decoder_layers: PositiveInt = 6
    """Transformer decoder layers."""
    feedforward_dim: PositiveInt = 2048
    """Width of the feed-forward blocks, channels."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout in the transformer, fraction."""
    pre_norm: bool = False
    """Layer normalisation before each block instead of after it."""
    anchors: bool = False
    """A learned box for each query, where it looks and what its box is counted from: to train from scratch in fewer
    epochs; published weights have none."""
    auxiliary_outputs: bool = True
    """Predict, and take a loss, after every decoder layer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_dim % self.num_heads or self.hidden_dim % 16:
            raise ValueError(
                f"hidden_dim ({self.hidden_dim}) must be a multiple of 16 and of num_heads ({self.num_heads})"
            )
        return self


class GroupingSettings(Settings):
    """From maps to segments."""

    center_threshold: Threshold = 0.15
    """Least heat of a centre, exclusive."""
    center_window: Annotated[int, Field(ge=1)] = 5
    """Side of the window in which a centre must be the hottest cell, odd, cells."""
    min_thing_area: Fraction = 0.001
    """Smaller things are dropped, fraction of the image."""
    min_stuff_area: Fraction = 0.01
    """Smaller stuff is dropped, fraction of the image (published: 4096 of 641 x 641 pixels)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.center_window % 2 == 0:
            raise ValueError(f"center_window ({self.center_window}) must be odd")
        return self


class PanopticDeeplabSettings(Settings):
    """The network's size and parts; the number of classes follows from the taxonomy."""

    backbone: BackboneName = "resnet50"
    """Feature extractor: tiny, resnet18 … resnet101, or timm/<name>."""
    norm: Literal["frozen", "batch"] = "frozen"
    """The backbone's batch normalisation: 'frozen' statistics, or trained ('batch')."""
    channels: PositiveInt = 128
    """Width of the decoder, channels."""
    semantic_channels: PositiveInt = 48
    """Width of the semantic branch, channels."""
    instance_channels: PositiveInt = 64
    """Width of the instance branch, channels."""
    grouping: GroupingSettings = GroupingSettings()
