"""Backbones of four maps: ResNets, and a tiny one for demonstrations on a CPU.

Parameters have torchvision's names (`conv1`, `bn1`, `layer1` … `layer4`), as in the published DETR checkpoints.
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from construction_panoptic.errors import ParameterError

Norm = Literal["frozen", "batch"]
Rgb = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation

_NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolve ``x`` and normalise it; a frozen normalisation, a fixed scale and shift a channel, is folded into the
    (bias-free) convolution, which saves a pass over the map forward and backward.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def fast_layout(images: Tensor) -> Tensor:
    """Channels last in memory on a CPU, and in half precision on a GPU, where convolutions are fastest so."""
    if images.device.type == "cpu" or (images.is_cuda and torch.is_autocast_enabled("cuda")):
        return images.contiguous(memory_format=torch.channels_last)
    return images


def autocast_on_cpu(x: Tensor) -> bool:
    """Whether autocast is on for a tensor on a CPU, where some operations are faster in float32 all the same."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    return x if downsample is None else conv_norm(cast(nn.Conv2d, downsample[0]), downsample[1], x)


class FoldedBasicBlock(BasicBlock):
    """torchvision's block of ResNet-18 and 34, with frozen normalisation folded into its convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, planes, H / stride, W / stride]."""
        out = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        out = conv_norm(self.conv2, self.bn2, out)
        return F.relu(out.add_(_shortcut(self.downsample, x)), inplace=True)


class FoldedBottleneck(Bottleneck):
    """torchvision's block of ResNet-50 and 101, with frozen normalisation folded into its convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 4 planes, H / stride, W / stride]."""
        out = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        out = F.relu(conv_norm(self.conv2, self.bn2, out), inplace=True)
        out = conv_norm(self.conv3, self.bn3, out)
        return F.relu(out.add_(_shortcut(self.downsample, x)), inplace=True)


RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (FoldedBasicBlock, [2, 2, 2, 2]),
    "resnet34": (FoldedBasicBlock, [3, 4, 6, 3]),
    "resnet50": (FoldedBottleneck, [3, 4, 6, 3]),
    "resnet101": (FoldedBottleneck, [3, 4, 23, 3]),
}
_TINY_WIDTHS = (32, 64, 96, 128)
_TINY_STRIDES = (1, 2, 2, 1)


class Body(nn.Module):
    """A stem of stride 4 and four residual stages, whose maps have the widths ``channels``."""

    def __init__(self, conv1: nn.Conv2d, bn1: nn.Module, stages: list[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to the four stages' maps, finest first."""
        x = F.relu(conv_norm(self.conv1, self.bn1, images), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def _resnet_body(name: str, norm: Norm, dilation: bool) -> Body:
    block, depths = RESNETS[name]
    net = ResNet(block, depths, norm_layer=_NORM_LAYERS[norm], replace_stride_with_dilation=[False, False, dilation])
    channels = tuple(width * block.expansion for width in (64, 128, 256, 512))
    return Body(net.conv1, net.bn1, [net.layer1, net.layer2, net.layer3, net.layer4], channels)


def _tiny_body(norm: Norm) -> Body:
    norm_layer = _NORM_LAYERS[norm]

    def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    stages: list[nn.Module] = []
    inputs = _TINY_WIDTHS[0]
    for width, stride in zip(_TINY_WIDTHS, _TINY_STRIDES, strict=True):
        shortcut = nn.Sequential(conv(inputs, width, 1, stride), norm_layer(width)) if inputs != width else None
        block = FoldedBasicBlock(inputs, width, stride, shortcut, norm_layer=norm_layer)
        block.conv1, block.conv2 = conv(inputs, width, 3, stride), conv(width, width, 3, 1)
        stages.append(nn.Sequential(block))
        inputs = width
    return Body(conv(3, _TINY_WIDTHS[0], 3, 2), norm_layer(_TINY_WIDTHS[0]), stages, _TINY_WIDTHS)


class Backbone(nn.Module):
    """Four maps of a body, which gives them, of the widths ``channels``, finest first.

    ``rgb`` are the mean and the deviation of red, green, blue in 0…1 that the body was trained with, None where it has
    none of its own.
    """

    def __init__(self, body: nn.Module, channels: tuple[int, ...], rgb: Rgb | None = None) -> None:
        super().__init__()
        self.body, self.channels, self.rgb = body, channels, rgb

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to the four maps, finest first."""
        return self.body(fast_layout(images))


def build_resnet(name: str = "resnet50", *, norm: Norm = "frozen", dilation: bool = False) -> Backbone:
    """Build a ResNet, or the tiny one, with the layers frozen that fine-tuning leaves alone.

    With ``norm="frozen"`` (fine-tuning: fixed statistics, scale and shift) the stem and the first stage keep their
    weights and the other stages learn, as in the published recipe; with ``norm="batch"`` (from scratch) all learn.
    Strides of the stages: ResNets 4, 8, 16, 32; tiny, and ResNet-50 and 101 with ``dilation`` (DC5), 4, 8, 16, 16.
    `ParameterError` for dilation with another backbone.
    """
    if dilation and name not in ("resnet50", "resnet101"):
        raise ParameterError(f"dilation: {name} has no dilated form; choose resnet50 or resnet101, or false.")
    body = _tiny_body(norm) if name == "tiny" else _resnet_body(name, norm, dilation)
    if norm == "frozen":
        for module in (body.conv1, body.bn1, body.layer1):
            module.requires_grad_(False)
    return Backbone(body, body.channels)
