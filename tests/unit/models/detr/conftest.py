"""Hugging Face's DETR as the independent implementation, see `benchmarks.hf`.

Its ResNet has no dilated form (the test dilates it by hand).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.hf import build_peer, published_state, randomise
from construction_panoptic.models.detr import Detr, DetrPanoptic, build_detr, build_detr_panoptic


@dataclass
class Pair:
    """Our model and Hugging Face's with the same random weights, both in eval mode."""

    ours: Detr | DetrPanoptic
    theirs: Any

    def both(self, images: Tensor, padding_mask: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Outputs of both under our names."""
        with torch.no_grad():
            ours = self.ours(images, padding_mask)
            theirs = self.theirs(pixel_values=images, pixel_mask=~padding_mask, output_hidden_states=True)
        named = {"pred_logits": theirs.logits, "pred_boxes": theirs.pred_boxes}
        if hasattr(theirs, "pred_masks"):
            named["pred_masks"] = theirs.pred_masks
        return ours, {**named, "hidden": theirs.decoder_hidden_states}


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """Build a `Pair`; the arguments are ours."""
    pytest.importorskip("transformers")

    def make(
        backbone: str,
        *,
        panoptic: bool,
        dilation: bool = False,
        num_classes: int = 7,
        hidden_dim: int = 64,
        layers: int = 2,
        queries: int = 9,
        feedforward_dim: int = 96,
    ) -> Pair:
        theirs = build_peer(
            backbone,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            layers=layers,
            queries=queries,
            feedforward_dim=feedforward_dim,
        ).eval()
        if dilation:
            dilate(theirs.detr.model.backbone.model.encoder.stages[3].layers)
        randomise(theirs)
        state = published_state(theirs.state_dict())
        build = build_detr_panoptic if panoptic else build_detr
        if not panoptic:
            theirs = theirs.detr
            state = {k.removeprefix("detr."): v for k, v in state.items() if k.startswith("detr.")}
        ours: Detr | DetrPanoptic = build(
            num_classes,
            backbone=backbone,
            dilation=dilation,
            num_queries=queries,
            hidden_dim=hidden_dim,
            encoder_layers=layers,
            decoder_layers=layers,
            feedforward_dim=feedforward_dim,
        )
        ours.load_state_dict(state, strict=True)
        return Pair(ours.eval(), theirs)

    return make


def dilate(blocks: nn.Module) -> None:
    """Turn the last stage's stride into dilation as torchvision does: from the second block on."""
    for index, block in enumerate(blocks.children()):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
                if index and conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (2, 2)


def padded_batch(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images of these heights and widths, zero-padded right and below, and the padding mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    images = torch.zeros(len(sizes), 3, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = False
    return images, mask


@pytest.fixture(scope="session")
def make_batch() -> Callable[[list[tuple[int, int]]], tuple[Tensor, Tensor]]:
    """`padded_batch`, for the tests."""
    return padded_batch


@pytest.fixture(scope="session")
def randomise_model() -> Callable[..., None]:
    """`randomise`, for the tests."""
    return randomise
