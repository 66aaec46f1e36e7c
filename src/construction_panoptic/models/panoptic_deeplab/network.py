"""The network: a backbone, one light pyramid decoder, a semantic branch and an instance branch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4
"""Pixels a cell of the maps, in each direction."""

SEMANTIC_STRIDE = 2
"""The same of the map of classes."""


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class PyramidDecoder(nn.Module):
    """From the backbone's maps to one at stride 4: the coarser ones are enlarged and added, from the top down."""

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in inputs)
        self.context = nn.Conv2d(inputs[-1], channels, 1)
        self.blocks = nn.ModuleList(conv_block(channels, channels) for _ in inputs[:-1])

    def forward(self, maps: list[Tensor], padding_mask: Tensor | None) -> Tensor:
        x = self.laterals[-1](maps[-1]) + self.context(global_average(maps[-1], padding_mask))
        for lateral, block, finer in zip(
            reversed(self.laterals[:-1]), reversed(self.blocks), reversed(maps[:-1]), strict=True
        ):
            x = F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            x = block(x + lateral(finer))
        return x


def global_average(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean [B, C, 1, 1] of a map [B, C, h, w] over the cells that are no padding."""
    if padding_mask is None:
        return x.mean((2, 3), keepdim=True)
    inside = F.interpolate((~padding_mask)[:, None].to(x), size=x.shape[-2:], mode="nearest")
    return (x * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)


class SemanticBranch(nn.Module):
    """Classes at stride 2: the decoder's map, enlarged, beside the edges that the image itself shows there."""

    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, channels, 1)
        self.detail = nn.Conv2d(3, channels, 3, 2, padding=1)
        self.block = conv_block(channels, channels)
        self.classes = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
        detail = self.detail(images)
        x = F.relu(x[..., : detail.shape[-2], : detail.shape[-1]] + detail)
        return self.classes(self.block(x))


class PanopticDeeplab(nn.Module):
    """Panoptic-DeepLab (Cheng et al. 2020, 1911.10194) with a feature pyramid instead of atrous pooling.

    Args:
        backbone: gives four maps, finest first, at strides 4 to 32 (or less); their widths are its ``channels``.
        num_classes: highest category id + 1.
        channels: width of the decoder and of the semantic branch.
        instance_channels: width of the instance branch.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, *, channels: int = 96, semantic_channels: int = 48, instance_channels: int = 64
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.decoder = PyramidDecoder(tuple(backbone.channels), channels)
        self.semantic = SemanticBranch(channels, semantic_channels, num_classes)
        self.instance = nn.Sequential(conv_block(channels, instance_channels), conv_block(instance_channels, instance_channels))
        self.center = nn.Conv2d(instance_channels, 1, 1)
        self.offset = nn.Conv2d(instance_channels, 2, 1)
        nn.init.constant_(self.center.bias, -4.0)  # few cells are centres

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the maps, of h = H / 4 by w = W / 4 cells, rounded up.

        Args:
            images: float [B, 3, H, W], normalised, 0 in the padding.
            padding_mask: bool [B, H, W], True in the padding; None where there is none.

        Returns:
            ``semantic`` [B, num_classes, h, w], logits; ``center`` [B, h, w], logits of the heat;
            ``offset`` [B, 2, h, w], from a cell to the centre of its thing, (down, right) in cells.
        """
        x = self.decoder(self.backbone(images), padding_mask)
        instance = self.instance(x)
        return {
            "semantic": self.semantic(x, images),
            "center": self.center(instance)[:, 0],
            "offset": self.offset(instance),
        }


def build_panoptic_deeplab(num_classes: int, *, backbone: str = "resnet50", norm: str = "frozen", **sizes: Any) -> PanopticDeeplab:
    from construction_panoptic.models.backbones import Backbone

    return PanopticDeeplab(Backbone(backbone, norm=norm), num_classes, **sizes)
