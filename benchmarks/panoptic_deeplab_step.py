"""One training step of Panoptic-DeepLab beside one of Mask2Former, on the same backbone with the same weights.

They are different models: what is compared are the maps of the backbone, what is timed are losses and gradients.
"""

from typing import Any

import torch

from benchmarks import mask2former
from benchmarks.inputs import NUM_CLASSES, categories_of, random_images, random_targets
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.models.panoptic_deeplab import build_panoptic_deeplab
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.tasks.panoptic_deeplab import PanopticDeeplabTask
from construction_panoptic.training.tasks.protocol import total_loss

IMAGES, TARGETS, SIZE = 4, 12, (320, 416)
SPEC = ModelSpec(categories=categories_of(Options()))


def network(options: Options) -> Any:
    """Build ours, with random weights; the peer takes its backbone."""
    torch.manual_seed(0)
    settings = PanopticDeeplabSettings(backbone="tiny" if options.small else "resnet50", norm="frozen")
    return build_panoptic_deeplab(NUM_CLASSES, settings).to(options.torch_device)


def _batch(options: Options) -> Batch:
    images = random_images(options, IMAGES, *SIZE)
    return Batch(images, None, random_targets(options, IMAGES, TARGETS, *SIZE), ["random"] * IMAGES)


def peer(options: Options) -> Step:
    model, batch = mask2former.build_for(options, network(options).backbone).train(), _batch(options)

    def step() -> Outputs:
        model.zero_grad()
        mask2former.loss(model, batch).backward()
        return {"maps": model.model.pixel_level_module.encoder.backbone(batch.images)[-1].detach()}

    return step


def ours(options: Options) -> Step:
    step = our_outputs(options)
    return lambda: {"maps": step()["maps"]}


def our_outputs(options: Options) -> Step:
    """Our step with its losses and gradients, which the peer has not."""
    model, batch = network(options).train(), _batch(options)
    task = PanopticDeeplabTask(model, PanopticDeeplabTrainingSettings(), SPEC)

    def step() -> Outputs:
        model.zero_grad()
        loss, terms = total_loss(task.losses(batch), task.normalisers(batch))
        loss.backward()
        gradients = {
            f"gradient_of_{name}": layer.weight.grad / layer.weight.grad.norm()
            for name, layer in (("center", model.center), ("classes", model.semantic.classes))
        }
        return {"maps": model.backbone(batch.images)[-1].detach(), **terms, **gradients}

    return step


BENCHMARK = Benchmark(
    name="panoptic_deeplab_step",
    workload="Panoptic-DeepLab training step, R50, 65 logits, 4 images 320x416, 12 segments each, float32",
    peer="transformers Mask2Former",
    sides={"peer": peer, "ours": ours},
)

if __name__ == "__main__":
    main(BENCHMARK)
