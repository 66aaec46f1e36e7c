"""Hugging Face's DETR as the independent implementation, with its parameters under the published names.

It differs from the published model in three ways that matter here: attention weights are not packed, its
ResNet has no dilated form (the test dilates it by hand), and with ``auxiliary_loss`` it feeds the normalised
output of a decoder layer to the next one, so the outputs of earlier layers are read from its hidden states
instead.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from construction_panoptic.detr import Detr, DetrPanoptic, build_detr, build_detr_panoptic

RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    "resnet101": ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
}
HF_TO_PUBLISHED = (
    (r"^detr\.model\.backbone\.model\.embedder\.embedder\.", "detr.backbone.0.body.stem."),
    (r"^detr\.model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.", r"detr.backbone.0.body.stage\1."),
    (r"stem\.convolution", "conv1"),
    (r"stem\.normalization", "bn1"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"^detr\.model\.query_position_embeddings", "detr.query_embed"),
    (r"^detr\.model\.input_projection", "detr.input_proj"),
    (r"^detr\.model\.(encoder|decoder)\.", r"detr.transformer.\1."),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"\.mlp\.fc([12])", r".linear\1"),
    (r"\.self_attn_layer_norm", ".norm1"),
    (r"\.encoder_attn_layer_norm", ".norm2"),
    (r"(encoder\.layers\.\d+)\.final_layer_norm", r"\1.norm2"),
    (r"(decoder\.layers\.\d+)\.final_layer_norm", r"\1.norm3"),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"attn\.o_proj", "attn.out_proj"),
    (r"^detr\.class_labels_classifier", "detr.class_embed"),
    (r"^detr\.bbox_predictor", "detr.bbox_embed"),
    (r"^bbox_attention\.([qk])_proj", r"bbox_attention.\1_linear"),
    (r"^mask_head\.conv([12])\.conv", r"mask_head.lay\1"),
    (r"^mask_head\.conv([12])\.norm", r"mask_head.gn\1"),
    (r"^mask_head\.output_conv", "mask_head.out_lay"),
)


def published_key(key: str) -> str:
    """One key of `DetrForSegmentation` in the published layout, attention projections not yet packed."""
    for pattern, replacement in HF_TO_PUBLISHED:
        key = re.sub(pattern, replacement, key)

    def plus(prefix: str, offset: int) -> Callable[[re.Match[str]], str]:
        return lambda match: f"{prefix}{int(match[1]) + offset}"

    key = re.sub(r"stage(\d)", plus("layer", 1), key)
    key = re.sub(r"\.layer\.(\d)\.convolution", plus(".conv", 1), key)
    key = re.sub(r"\.layer\.(\d)\.normalization", plus(".bn", 1), key)
    key = re.sub(r"fpn_stages\.(\d)\.fpn_adapter", plus("adapter", 1), key)
    key = re.sub(r"fpn_stages\.(\d)\.refine\.conv", plus("lay", 3), key)
    return re.sub(r"fpn_stages\.(\d)\.refine\.norm", plus("gn", 3), key)


def published_state(hf_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a Hugging Face DETR under the published names and in the published packing."""
    state = {published_key(key): value for key, value in hf_state.items()}
    for kind in ("weight", "bias"):
        for key in [key for key in state if key.endswith(f"attn.q_proj.{kind}")]:
            parts = [state.pop(key.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            state[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return state


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and statistic a random value.

    The sizes are such that the outputs differ clearly between images, queries and pixels: queries and
    attention logits are large, so that attention is sharp.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.dim() == 2:
                sharp = re.search("query|attn.*([qk]_proj|in_proj)", name)
                gain = 8.0 if sharp else 1.0
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * gain * tensor.shape[1] ** -0.5)
            elif re.search(r"mask_head\.(conv1\.conv|lay1)\.weight", name):
                tensor[:, -8:] *= 100.0
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            if re.search(r"backbone.*(bn\d|downsample\.1|normalization)\.weight", name):
                tensor.copy_(0.2 + 0.6 * torch.rand(tensor.shape, generator=generator))


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
    transformers = pytest.importorskip("transformers")

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
        block, depths, widths = RESNETS[backbone]
        resnet = transformers.ResNetConfig(
            layer_type=block,
            depths=depths,
            hidden_sizes=widths,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            backbone_config=resnet,
            d_model=hidden_dim,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_ffn_dim=feedforward_dim,
            decoder_ffn_dim=feedforward_dim,
            num_queries=queries,
            num_labels=num_classes,
        )
        theirs = transformers.DetrForSegmentation(config).eval()
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
