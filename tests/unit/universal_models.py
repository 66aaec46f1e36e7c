"""Tiny models of `transformers` with random weights, in folders as `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

import torch
import transformers

FAMILIES = ["eomt", "mask2former", "maskformer", "oneformer"]
NAMES = ["person", "sky-other-merged", "truck", "Wall", "road", "grass", "spaceship"]
EOMT_SIDE = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def network(family: str) -> Any:
    classes: dict[str, Any] = {
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: label for label, name in enumerate(NAMES)},
    }
    if family == "eomt":
        small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
        return transformers.EomtForUniversalSegmentation(
            transformers.EomtConfig(**small, num_queries=20, image_size=EOMT_SIDE, patch_size=16, **classes)
        )
    swin: Any = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    if family == "maskformer":
        detr: Any = transformers.DetrConfig(
            d_model=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
            num_queries=20,
            use_timm_backbone=False,
            backbone_config=transformers.ResNetConfig(),
        )
        maskformer = transformers.MaskFormerConfig(
            backbone_config=swin, fpn_feature_size=32, mask_feature_size=32, decoder_config=detr, **classes
        )
        return transformers.MaskFormerForInstanceSegmentation(maskformer)
    decoder: dict[str, Any] = {
        "backbone_config": swin,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "num_queries": 20,
        **classes,
    }
    if family == "mask2former":
        config = transformers.Mask2FormerConfig(mask_feature_size=32, feature_size=32, **decoder)
        return transformers.Mask2FormerForUniversalSegmentation(config)
    text: dict[str, Any] = {"text_encoder_width": 32, "text_encoder_vocab_size": 64, "text_encoder_num_layers": 1}
    return transformers.OneFormerForUniversalSegmentation(
        transformers.OneFormerConfig(mask_dim=32, conv_dim=32, task_seq_len=12, is_training=False, **text, **decoder)
    )


def write_model(folder: Path, family: str) -> Path:
    """A small model whose queries differ and are sure of their classes."""
    torch.manual_seed(3)
    model = network(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and ("class_predictor" in name or "class_embed" in name):
                torch.nn.init.normal_(parameter, std=2)
            elif name.endswith(("query.weight", "queries_features.weight", "queries_embedder.weight")):
                torch.nn.init.normal_(parameter, std=3)
    model.save_pretrained(folder)
    size = {"shortest_edge": 384, "longest_edge": 384}  # as published; the settings have others
    if family == "eomt":
        transformers.EomtImageProcessor(size=size, do_split_image=True).save_pretrained(folder)
    elif family == "oneformer":
        # As published: names of classes that it would have to download.
        processor = transformers.OneFormerImageProcessor(size=size)
        processor.class_info_file = "coco_panoptic.json"
        processor.save_pretrained(folder)
        tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    else:
        kinds: dict[str, Any] = {
            "mask2former": transformers.Mask2FormerImageProcessor,
            "maskformer": transformers.MaskFormerImageProcessor,
        }
        kinds[family](size=size).save_pretrained(folder)
    return folder
