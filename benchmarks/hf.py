"""Hugging Face's DETR as the peer: its parameters under the published names, and random weights for both.

It differs from the published model in two ways: its attention weights are not packed, and with
``auxiliary_loss`` it feeds the normalised output of a decoder layer to the next one, so the outputs of earlier
layers are read from its hidden states instead.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from construction_panoptic.models.detr import Detr, DetrPanoptic

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


def load_published(theirs: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a Hugging Face `DetrForSegmentation` the weights of a published state, unpacking its attention."""
    values = {}
    for key in theirs.state_dict():
        name = published_key(key)
        if found := re.search(r"attn\.([qkv])_proj\.", name):
            packed = state[re.sub(r"[qkv]_proj\.", "in_proj_", name)]
            values[key] = packed.chunk(3)["qkv".index(found[1])]
        else:
            values[key] = state[name]
    theirs.load_state_dict(values, strict=True)


def build_peer(
    backbone: str,
    *,
    num_classes: int,
    hidden_dim: int,
    layers: int,
    queries: int,
    feedforward_dim: int,
    dropout: float = 0.1,
) -> Any:
    """A `DetrForSegmentation` of these sizes, named as ours are; its detector is its attribute `detr`."""
    transformers: Any = importlib.import_module("transformers")

    block, depths, widths = RESNETS[backbone]
    resnet = transformers.ResNetConfig(
        layer_type=block,
        depths=depths,
        hidden_sizes=widths,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.DetrConfig(
        backbone_config=resnet,
        d_model=hidden_dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=feedforward_dim,
        decoder_ffn_dim=feedforward_dim,
        num_queries=queries,
        dropout=dropout,
        use_timm_backbone=False,
        num_labels=num_classes,
    )
    return transformers.DetrForSegmentation(config)


def outputs_of_all_layers(theirs: Any, images: Tensor, pixel_mask: Tensor) -> dict[str, Any]:
    """Logits and boxes of Hugging Face's detector; those of the layers before the last are ``auxiliary_outputs``."""
    outputs = theirs(pixel_values=images, pixel_mask=pixel_mask, output_hidden_states=True)
    hidden = theirs.model.decoder.layernorm(torch.stack(outputs.decoder_hidden_states[1:-1]))
    logits, boxes = theirs.class_labels_classifier(hidden), theirs.bbox_predictor(hidden).sigmoid()
    auxiliary = [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
    return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes, "auxiliary_outputs": auxiliary}


def sharpen_classes(model: Detr | DetrPanoptic) -> None:
    """Make the random class head sure of itself, and of objects, so that there are queries to keep."""
    detector = model.detr if isinstance(model, DetrPanoptic) else model
    with torch.no_grad():
        detector.class_embed.weight.mul_(4)
        detector.class_embed.bias[-1] = -100
