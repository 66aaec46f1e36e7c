"""One training step of the mask head behind the frozen detector.

The peer computes what the published recipe does: the detector with a mask of every query, all losses, and the
gradient of the two mask losses. Ours is the task's own step.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks import facebook
from benchmarks.inputs import our_model, peer_model, random_images, random_targets
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.tasks.feature_cache import FeatureCache
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from construction_panoptic.training.tasks.protocol import total_loss

TARGETS = 8
SPEC = ModelSpec(categories=({"id": 1, "name": "any", "isthing": 1},))  # of no matter to losses
SIZE = (800, 1066)


def peer(options: Options) -> Step:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    model = peer_model(options)
    model.detr.requires_grad_(False)
    images = random_images(options, 1, *SIZE)
    labels = [_peer_labels(target) for target in random_targets(options, 1, TARGETS, *SIZE)]
    criterion = ImageLoss(
        HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2),
        num_classes=model.config.num_labels,
        eos_coef=0.1,
        losses=["labels", "boxes", "cardinality", "masks"],
    ).to(images.device)

    def step() -> Outputs:
        model.zero_grad()
        outputs = model(pixel_values=images, pixel_mask=torch.ones_like(images[:, 0]))
        losses = criterion(
            {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes, "pred_masks": outputs.pred_masks}, labels
        )
        (losses["loss_mask"] + losses["loss_dice"]).backward()
        return _outputs(losses, model.mask_head.conv1.conv, model.mask_head.output_conv)

    return step


def _peer_labels(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"class_labels": target["labels"], "boxes": target["boxes"], "masks": _masks(target)}


def _masks(target: dict[str, Tensor]) -> Tensor:
    return target["id_map"][None] == target["segment_ids"][:, None, None]


def published(options: Options) -> Step:
    model = facebook.panoptic_model(options)
    images = facebook.batch(options, random_images(options, 1, *SIZE))
    targets = [{**target, "masks": _masks(target)} for target in random_targets(options, 1, TARGETS, *SIZE)]
    criterion = facebook.criterion(options, "labels", "boxes", "cardinality", "masks")

    def step() -> Outputs:
        model.zero_grad()
        losses = criterion(model(images), targets)
        facebook.total(losses).backward()
        return _outputs(losses, model.mask_head.lay1, model.mask_head.out_lay)

    return step


def ours(options: Options) -> Step:
    return our_step(options, MaskHeadSettings())


def our_step(options: Options, settings: MaskHeadSettings, cache: FeatureCache | None = None) -> Step:
    """The task's step, with or without kept outputs of the detector."""
    model = our_model(options).train()
    task = MaskHeadTask(model, settings, SPEC, cache)
    batch = Batch(
        random_images(options, 1, *SIZE), None, random_targets(options, 1, TARGETS, *SIZE), file_names=["random"]
    )

    def step() -> Outputs:
        model.zero_grad()
        loss, terms = total_loss(task.losses(batch), task.normalisers(batch))
        loss.backward()
        return _outputs(terms, model.mask_head.lay1, model.mask_head.out_lay)

    return step


def _outputs(losses: dict[str, Tensor], first: Any, last: Any) -> dict[str, Any]:
    gradients = {name: layer.weight.grad for name, layer in (("first", first), ("last", last))}
    return {
        **{name: losses[name].detach() for name in ("loss_mask", "loss_dice")},
        **{f"gradient_of_{name}_layer": value / value.norm() for name, value in gradients.items()},
    }


BENCHMARK = Benchmark(
    name="frozen_step",
    workload="Frozen mask-head training step, R50, 66 logits, 100 queries, one 800x1066 image, 8 targets, float32",
    peer="transformers DETR",
    sides={"peer": peer, "ours": ours},
    published=published,
)

if __name__ == "__main__":
    main(BENCHMARK)
