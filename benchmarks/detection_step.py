"""One training step of the detector, forward and backward, with the losses of all decoder layers.

Dropout is off on both sides, so that losses and gradients can be compared.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks import facebook, hf
from benchmarks.inputs import our_model, peer_model, random_images, random_targets
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.config.training import DetectionSettings, LossSettings
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.protocol import total_loss

IMAGES = 2
TARGETS = 8
SPEC = ModelSpec(categories=({"id": 1, "name": "any", "isthing": 1},))  # of no matter to losses
SIZE = (480, 640)
WEIGHTS = LossSettings()


def peer(options: Options) -> Step:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    model = peer_model(options, dropout=0.0).detr.train()
    _freeze_stem(model.model.backbone.model)
    images = random_images(options, IMAGES, *SIZE)
    labels = [
        {"class_labels": target["labels"], "boxes": target["boxes"]}
        for target in random_targets(options, IMAGES, TARGETS, *SIZE)
    ]
    criterion = ImageLoss(
        HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2),
        num_classes=model.config.num_labels,
        eos_coef=0.1,
        losses=["labels", "boxes", "cardinality"],
    ).to(images.device)
    weights = {"loss_ce": WEIGHTS.ce, "loss_bbox": WEIGHTS.bbox, "loss_giou": WEIGHTS.giou}

    def step() -> Outputs:
        model.zero_grad()
        losses = criterion(hf.outputs_of_all_layers(model, images, torch.ones_like(images[:, 0])), labels)
        terms = [
            weight * value
            for kind, weight in weights.items()
            for name, value in losses.items()
            if name.startswith(kind)
        ]
        torch.stack(terms).sum().backward()
        return _outputs(losses, model.model.input_projection, model.class_labels_classifier)

    return step


def _freeze_stem(backbone: Any) -> None:
    """Train the last three stages, as the published recipe does; the peer's own default leaves all of them fixed."""
    backbone.requires_grad_(True)
    backbone.embedder.requires_grad_(False)
    backbone.encoder.stages[0].requires_grad_(False)


def published(options: Options) -> Step:
    model = facebook.panoptic_model(options, dropout=0.0).detr.requires_grad_(True).train()
    body = model.backbone[0].body
    for part in (body.conv1, body.layer1):
        part.requires_grad_(False)
    images = facebook.batch(options, random_images(options, IMAGES, *SIZE))
    targets = random_targets(options, IMAGES, TARGETS, *SIZE)
    criterion = facebook.criterion(options, "labels", "boxes", "cardinality")

    def step() -> Outputs:
        model.zero_grad()
        losses = criterion(model(images), targets)
        facebook.total(losses).backward()
        return _outputs(losses, model.input_proj, model.class_embed)

    return step


def ours(options: Options) -> Step:
    model = our_model(options, dropout=0.0).detr.requires_grad_(True).train()
    backbone: Any = model.backbone[0]
    for part in (backbone.body.conv1, backbone.body.layer1):
        part.requires_grad_(False)
    task = DetectionTask(model, DetectionSettings(), SPEC)
    batch = Batch(
        random_images(options, IMAGES, *SIZE),
        None,
        random_targets(options, IMAGES, TARGETS, *SIZE),
        file_names=["random"] * IMAGES,
    )

    def step() -> Outputs:
        model.zero_grad()
        loss, terms = total_loss(task.losses(batch), task.normalisers(batch))
        loss.backward()
        return _outputs(terms, model.input_proj, model.class_embed)

    return step


def _outputs(losses: dict[str, Tensor], projection: Any, classes: Any) -> dict[str, Any]:
    gradients = {name: layer.weight.grad for name, layer in (("projection", projection), ("classes", classes))}
    return {
        **{name: losses[name].detach() for name in ("loss_ce", "loss_bbox", "loss_giou")},
        **{f"gradient_of_{name}": value / value.norm() for name, value in gradients.items()},
    }


BENCHMARK = Benchmark(
    name="detection_step",
    workload="Detection training step, R50, 66 logits, 100 queries, 2 images 480x640, 8 targets each, float32",
    peer="transformers DETR",
    sides={"peer": peer, "ours": ours},
    published=published,
)

if __name__ == "__main__":
    main(BENCHMARK)
