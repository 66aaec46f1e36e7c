"""Mask2Former of `transformers` on a backbone of ours, the peer of Panoptic-DeepLab."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inputs import NUM_CLASSES
from benchmarks.measuring import Options
from construction_panoptic.training.loading import Batch


class _Encoder(nn.Module):
    """A backbone of ours as the peer takes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.backbone(images))


def build(backbone: Any, num_classes: int, *, queries: int, width: int = 256, layers: int = 6) -> Any:
    """Build the model with random weights around the backbone; ``layers`` of its pixel decoder and decoder."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    maps = ResNetConfig(  # of the right widths; it is replaced
        embedding_size=8,
        hidden_sizes=list(backbone.channels),
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=maps,
        num_labels=num_classes,
        num_queries=queries,
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=4 * width,
        dim_feedforward=4 * width,
        encoder_layers=layers,
        decoder_layers=layers + 1,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    model.model.pixel_level_module.encoder = _Encoder(backbone)
    return model


def build_for(options: Options, backbone: Any) -> Any:
    """Build the model around the backbone at its published size, or a small one to try a benchmark with."""
    small = {"queries": 10, "width": 32, "layers": 1}
    return build(backbone, NUM_CLASSES, **(small if options.small else {"queries": 100})).to(options.torch_device)


def loss(model: Any, batch: Batch) -> Tensor:
    """Compute the peer's own loss of a batch; a segment is one mask, what is void belongs to none."""
    height, width = batch.images.shape[-2:]
    masks, labels = [], []
    for target in batch.targets:
        mask = torch.zeros(len(target["labels"]), height, width)
        h, w = target["id_map"].shape
        mask[:, :h, :w] = (target["id_map"][None] == target["segment_ids"][:, None, None]).float()
        masks.append(mask)
        labels.append(target["labels"])
    pixels = None if batch.padding_mask is None else (~batch.padding_mask).long()
    return model(batch.images, pixel_mask=pixels, mask_labels=masks, class_labels=labels).loss.sum()


@torch.no_grad()
def segment(model: Any, batch: Batch, stuff: Collection[int], threshold: float = 0.5) -> list[tuple[Tensor, list[Any]]]:
    """Segment a batch by the peer's own post-processing: for each image ids [H, W], 0 void, and its segments."""
    from transformers import Mask2FormerImageProcessor

    outputs = model(batch.images)
    found = []
    for image, target in enumerate(batch.targets):
        height, width = (-(-side // 4) for side in target["size"].tolist())  # the image's part of the padded maps
        one = SimpleNamespace(
            class_queries_logits=outputs.class_queries_logits[image : image + 1],
            masks_queries_logits=outputs.masks_queries_logits[image : image + 1, :, :height, :width],
        )
        (result,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
            one, threshold=threshold, label_ids_to_fuse=set(stuff), target_sizes=[tuple(target["orig_size"].tolist())]
        )
        labels = {info["id"]: info["label_id"] for info in result["segments_info"]}  # fused segments come twice
        segments = [{"id": number, "category_id": label} for number, label in labels.items()]
        found.append((result["segmentation"].clamp(min=0).to(torch.int32), segments))
    return found
