"""The published implementation as the peer: facebookresearch/detr, from a checkout named by ``--detr``.

Its parameters have the names and shapes of ours, so it takes our weights as they are.
"""

import importlib
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.inputs import NUM_CLASSES, is_thing_of, our_model, sizes
from benchmarks.measuring import Options

LOSS_WEIGHTS = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_mask": 1, "loss_dice": 1}


def module(options: Options, name: str) -> Any:
    """Import a module of the checkout."""
    if options.detr not in sys.path:
        sys.path.insert(0, options.detr)
    return importlib.import_module(name)


def panoptic_model(options: Options, dropout: float = 0.1) -> Any:
    """DETR panoptic in eval mode with our weights; the detector is frozen."""
    segmentation = module(options, "models.segmentation")
    size = sizes(options)
    detector = _detector(options, dropout)
    model = segmentation.DETRsegm(detector, freeze_detr=True)
    widths = [detector.backbone.num_channels // factor for factor in (2, 4, 8)]
    heads = detector.transformer.nhead
    model.mask_head = segmentation.MaskHeadSmallConv(size.hidden_dim + heads, widths, size.hidden_dim)
    model.load_state_dict(our_model(options).state_dict())
    return model.eval().to(options.torch_device)


def _detector(options: Options, dropout: float) -> Any:
    backbone = module(options, "models.backbone")
    backbone.is_main_process = lambda: False  # the main process would download weights
    size = sizes(options)
    body = backbone.Backbone(size.backbone, train_backbone=True, return_interm_layers=True, dilation=False)
    position = module(options, "models.position_encoding").PositionEmbeddingSine(size.hidden_dim // 2, normalize=True)
    joined = backbone.Joiner(body, position)
    joined.num_channels = body.num_channels
    transformer = module(options, "models.transformer").Transformer(
        d_model=size.hidden_dim,
        dropout=dropout,
        num_encoder_layers=size.layers,
        num_decoder_layers=size.layers,
        dim_feedforward=size.feedforward_dim,
        return_intermediate_dec=True,
    )
    return module(options, "models.detr").DETR(joined, transformer, NUM_CLASSES, size.queries, aux_loss=True)


def criterion(options: Options, *names: str) -> Any:
    """The losses ``names`` of the published recipe; call it with outputs and targets."""
    matcher = module(options, "models.matcher").HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    losses = module(options, "models.detr").SetCriterion(NUM_CLASSES, matcher, LOSS_WEIGHTS, 0.1, list(names))
    return losses.to(options.torch_device)


def total(losses: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the losses of all layers."""
    weighted = [LOSS_WEIGHTS[kind] * value for name, value in losses.items() if (kind := _kind(name)) in LOSS_WEIGHTS]
    return torch.stack(weighted).sum()


def _kind(name: str) -> str:
    kind, _, layer = name.rpartition("_")
    return kind if layer.isdigit() else name


def batch(options: Options, images: Tensor) -> Any:
    """Images without padding, as the model takes them."""
    return module(options, "util.misc").NestedTensor(images, torch.zeros_like(images[:, 0], dtype=torch.bool))


def panoptic_merging(options: Options, threshold: float) -> Callable[[dict[str, Tensor], tuple[int, int]], np.ndarray]:
    """The published post-processing of one image, from outputs and its size to segment numbers int64 [H, W] from 1."""
    merge = module(options, "models.segmentation").PostProcessPanoptic(is_thing_of(options), threshold)

    def segments(outputs: dict[str, Tensor], size: tuple[int, int]) -> np.ndarray:
        with Image.open(BytesIO(merge(outputs, [size])[0]["png_string"])) as file:
            numbers = np.asarray(file).astype(np.int64) @ np.array([1, 256, 65536])
        return np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape) + 1

    return segments
