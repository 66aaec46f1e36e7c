"""The inputs that both sides share: models with the same random weights, images, targets, a small data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from benchmarks import hf
from benchmarks.measuring import Options
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.models.detr import DetrPanoptic, build_detr_panoptic
from construction_panoptic.sample import generate

NUM_CLASSES = 65


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; the defaults are DETR-R50's."""

    backbone: str = "resnet50"
    hidden_dim: int = 256
    layers: int = 6
    queries: int = 100
    feedforward_dim: int = 2048


def sizes(options: Options) -> Sizes:
    """The model of a workload, or the one to try a benchmark with."""
    return Sizes("resnet18", 128, 2, 12, 96) if options.small else Sizes()


def image_size(options: Options, height: int, width: int) -> tuple[int, int]:
    """The size of a workload's images, or a quarter of it."""
    return (height // 4, width // 4) if options.small else (height, width)


def our_model(options: Options, dropout: float = 0.1) -> DetrPanoptic:
    """Ours, in eval mode, with random weights that depend on nothing but its sizes."""
    torch.manual_seed(0)
    size = sizes(options)
    model = build_detr_panoptic(
        NUM_CLASSES,
        backbone=size.backbone,
        num_queries=size.queries,
        hidden_dim=size.hidden_dim,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        feedforward_dim=size.feedforward_dim,
        dropout=dropout,
    )
    hf.randomise(model)
    hf.sharpen_classes(model)
    return model.eval().to(options.torch_device)


def peer_model(options: Options, dropout: float = 0.1) -> Any:
    """Hugging Face's with the same weights, in eval mode."""
    size = sizes(options)
    theirs = hf.build_peer(
        size.backbone,
        num_classes=NUM_CLASSES,
        hidden_dim=size.hidden_dim,
        layers=size.layers,
        queries=size.queries,
        feedforward_dim=size.feedforward_dim,
        dropout=dropout,
    )
    hf.load_published(theirs, our_model(options).cpu().state_dict())
    return theirs.eval().to(options.torch_device)


def random_images(options: Options, count: int, height: int, width: int) -> Tensor:
    """Smooth random images float32 [count, 3, H, W], normalised, without padding."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 12, 16, generator=generator)
    smooth = F.interpolate(coarse, size=image_size(options, height, width), mode="bicubic")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(options.torch_device)


def random_targets(options: Options, count: int, objects: int, height: int, width: int) -> list[dict[str, Tensor]]:
    """Rectangles as targets: ``labels``, ``boxes`` (centre and size, relative), ``id_map``, ``segment_ids``."""
    height, width = image_size(options, height, width)
    generator = torch.Generator().manual_seed(2)
    limits = torch.tensor([width, height, width, height])
    targets = []
    for _ in range(count):
        start = (torch.rand(objects, 2, generator=generator) * 0.7 * limits[:2]).long()
        end = start + (limits[:2] * (0.1 + 0.2 * torch.rand(objects, 2, generator=generator))).long()
        id_map = torch.zeros(height, width, dtype=torch.int32)
        for index, ((left, top), (right, bottom)) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
            id_map[top:bottom, left:right] = index + 1
        target = {
            "labels": torch.randint(1, NUM_CLASSES, (objects,), generator=generator),
            "boxes": box_convert(torch.cat([start, end], dim=1).float() / limits, "xyxy", "cxcywh"),
            "id_map": id_map,
            "segment_ids": torch.arange(1, objects + 1),
        }
        targets.append({name: value.to(options.torch_device) for name, value in target.items()})
    return targets


def write_exports(options: Options) -> None:
    """Write drawn scenes of 0.74 megapixels into the folder, as CVAT exports with ready stuff predictions."""
    height, width = image_size(options, 740, 1000)
    settings = SampleSettings(
        images=20,
        height=height,
        widths=(width,),
        classes=("wheel_loader", "hydra_crane", "transit_mixer"),
        rare_class=None,
        mixed_fraction=0.85,
        near_duplicate_fraction=0.0,
        things=(3, 7),
        jpeg_quality=92,
    )
    for name, content in generate(settings):
        path = Path(options.folder) / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def is_thing_of(options: Options) -> Mapping[int, bool]:  # noqa: ARG001
    """By category id, whether it is a thing: 1 to 16 are stuff, as in the default taxonomy."""
    return {label: label > 16 for label in range(NUM_CLASSES)}


def categories_of(options: Options) -> tuple[dict[str, Any], ...]:
    """The classes of `is_thing_of` as COCO categories; 0 is none."""
    return tuple(
        {"id": label, "name": str(label), "isthing": int(thing)}
        for label, thing in is_thing_of(options).items()
        if label
    )
