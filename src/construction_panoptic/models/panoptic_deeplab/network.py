"""The network: a backbone, one light pyramid decoder, a semantic branch and an instance branch."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.models.backbones import Backbone
from construction_panoptic.models.timm_backbones import build_backbone
from construction_panoptic.models.weights import load_fitting

STRIDE = 4
"""Pixels a cell of the maps of centres and offsets, in each direction."""

SEMANTIC_STRIDE = 2
"""The same of the map of classes."""

_DETR = "backbone.0."


class PanopticDeeplab(nn.Module):
    """Panoptic-DeepLab (Cheng et al. 2020, 1911.10194), with a feature pyramid where that has atrous convolutions.

    Things are small where data is little: classes are predicted at stride 2, with the help of a convolution that looks
    at the image itself. ``num_classes`` is the highest category id + 1.
    """

    def __init__(self, backbone: Backbone, num_classes: int, settings: PanopticDeeplabSettings) -> None:
        super().__init__()
        channels, width = settings.channels, settings.instance_channels
        self.backbone = backbone
        self.decoder = PyramidDecoder(backbone.channels, channels)
        self.semantic = SemanticBranch(channels, settings.semantic_channels, num_classes)
        self.instance = nn.Sequential(_convolution(channels, width), _convolution(width, width))
        self.center = nn.Conv2d(width, 1, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        nn.init.constant_(cast("Tensor", self.center.bias), -4.0)  # few cells are centres

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the maps of images as in `Images`.

        ``semantic`` [B, num_classes, H / 2, W / 2] are logits, ``center`` [B, H / 4, W / 4] logits of the heat,
        ``offset`` [B, 2, H / 4, W / 4] is from a cell to the centre of its thing, (down, right) in cells. Sizes are
        rounded up.
        """
        x = self.decoder(self.backbone(images), padding_mask)
        instance = self.instance(x)
        return {
            "semantic": self.semantic(x, images),
            "center": self.center(instance)[:, 0],
            "offset": self.offset(instance),
        }


class PyramidDecoder(nn.Module):
    """From the backbone's maps to one at stride 4: from the coarsest down, maps are enlarged and the finer one added.

    To the coarsest its mean over the image is added, the padding left out.
    """

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        # Normalised, for a backbone's maps can differ in scale, and the finest would drown the coarsest.
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)) for width in inputs
        )
        self.context = nn.Conv2d(inputs[-1], channels, 1)
        self.blocks = nn.ModuleList(_convolution(channels, channels) for _ in inputs[1:])

    def forward(self, maps: list[Tensor], padding_mask: Tensor | None) -> Tensor:
        """Give a map [B, channels, H / 4, W / 4]."""
        x = self.laterals[-1](maps[-1]) + self.context(_mean(maps[-1], padding_mask))
        for number in reversed(range(len(self.blocks))):
            x = F.interpolate(x, size=maps[number].shape[-2:], mode="bilinear", align_corners=False)
            x = self.blocks[number](x + self.laterals[number](maps[number]))
        return x


class SemanticBranch(nn.Module):
    """Classes at stride 2: the decoder's map, enlarged, and the edges that the image itself shows there."""

    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.coarse = _convolution(inputs, channels)
        self.detail = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.block = _convolution(channels, channels)
        self.classes = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        """Give logits [B, num_classes, H / 2, W / 2] of a map at stride 4 and the images."""
        x = F.interpolate(self.coarse(x), scale_factor=STRIDE // SEMANTIC_STRIDE, mode="bilinear", align_corners=False)
        detail = self.detail(images)
        x = F.relu(x[..., : detail.shape[-2], : detail.shape[-1]] + detail)
        return self.classes(self.block(x))


def build_panoptic_deeplab(
    num_classes: int, settings: PanopticDeeplabSettings, weights: str | None = None
) -> PanopticDeeplab:
    """Build the network with random weights in all but, perhaps, its backbone.

    ``weights`` are those of a backbone of timm's; see `build_timm_backbone`, also for the errors.
    """
    backbone = build_backbone(settings.backbone, norm=settings.norm, weights=weights)
    return PanopticDeeplab(backbone, num_classes, settings)


def load_weights(network: PanopticDeeplab, state: Mapping[str, Tensor], source: str) -> str:
    """Load the state dict of a network of this kind, or the backbone of a DETR, and say in a line what was done.

    The layer of the classes stays as it is where their number differs; see `load_fitting` for the rest.
    """
    backbone = {f"backbone.{key.partition(_DETR)[2]}": value for key, value in state.items() if _DETR in key}
    return load_fitting(
        network,
        backbone or state,
        source,
        sized_by_data=("semantic.classes.weight", "semantic.classes.bias"),
        optional=("decoder.", "semantic.", "instance.", "center.", "offset.") if backbone else (),
        advice="Set model.backbone, norm and channels as that model has them, or choose other weights.",
    )


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _mean(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean [B, C, 1, 1] of a map [B, C, h, w] over the cells that are no padding."""
    if padding_mask is None:
        return x.mean((2, 3), keepdim=True)
    # By index: exported, interpolation by the nearest rounds otherwise than torch's.
    rows, columns = (
        torch.arange(x.shape[axis], device=x.device) * padding_mask.shape[axis - 1] // x.shape[axis] for axis in (2, 3)
    )
    inside = (~padding_mask[:, rows][:, :, columns])[:, None].to(x)
    return (x * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
