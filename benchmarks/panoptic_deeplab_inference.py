"""From a photograph to its panoptic PNG by Panoptic-DeepLab, beside Mask2Former on the same backbone.

They are different models: what is compared are the maps of the backbone, which is the one of `conf/laptop`. Its weights
are random, so the least heat of a centre is set to what keeps twenty centres.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import mask2former
from benchmarks.inputs import NUM_CLASSES, categories_of, image_size, is_thing_of, random_images
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.models.panoptic_deeplab import PanopticDeeplabModel, build_panoptic_deeplab
from construction_panoptic.models.panoptic_deeplab.grouping import find_centers
from construction_panoptic.models.protocol import Images
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch

SIZE = (800, 1066)
CENTERS = 20
LAPTOP = yaml.safe_load((Path(__file__).parents[1] / "conf/laptop/parameters.yml").read_text(encoding="utf-8"))
SETTINGS = PanopticDeeplabSettings(**LAPTOP["panoptic_deeplab"]["model"])


def network(options: Options) -> Any:
    """Build ours, with random weights; the peer takes its backbone."""
    torch.manual_seed(0)
    return build_panoptic_deeplab(NUM_CLASSES, SETTINGS).eval().to(options.torch_device)


def peer(options: Options) -> Step:
    backbone = network(options).backbone
    model = mask2former.build_for(options, backbone).eval()
    kept = _maps_of(backbone)
    size = torch.tensor(image_size(options, *SIZE))
    batch = Batch(random_images(options, 1, *SIZE), None, [{"size": size, "orig_size": size}], ["random"])
    stuff = [category for category, thing in is_thing_of(options).items() if not thing]

    @torch.inference_mode()
    def step() -> Outputs:
        ((id_map, _),) = mask2former.segment(model, batch, stuff)
        encode_id_map(id_map.cpu().numpy())
        return {"maps": kept["maps"]}

    return step


def ours(options: Options) -> Step:
    built, size = network(options), image_size(options, *SIZE)
    kept = _maps_of(built.backbone)
    images = Images(random_images(options, 1, *SIZE), None, [size], [size])
    with torch.inference_mode():
        center = built(images.pixels)["center"][0]
        rows, columns = find_centers(center, 0.0, SETTINGS.grouping.center_window).T
        heat = center[rows, columns].sigmoid().sort(descending=True).values
    grouping = SETTINGS.grouping.model_copy(update={"center_threshold": float(heat[CENTERS])})
    architecture = SETTINGS.model_copy(update={"grouping": grouping}).model_dump(mode="json")
    spec = ModelSpec(categories=categories_of(options), architecture=architecture, threshold=0.0)
    model = PanopticDeeplabModel(built, spec)

    @torch.inference_mode()
    def step() -> Outputs:
        (found,) = model.segment(images)
        encode_id_map(found.id_map)
        return {"maps": kept["maps"]}

    return step


def _maps_of(backbone: Any) -> dict[str, Any]:
    """Where the backbone's coarsest map is found after each run."""
    kept: dict[str, Any] = {}
    backbone.register_forward_hook(lambda _module, _inputs, maps: kept.update(maps=maps[-1]))
    return kept


BENCHMARK = Benchmark(
    name="panoptic_deeplab_inference",
    workload="Panoptic-DeepLab inference, EfficientNet-Lite0, 65 logits, one 800x1066 image, float32",
    peer="transformers Mask2Former",
    sides={"peer": peer, "ours": ours},
)

if __name__ == "__main__":
    main(BENCHMARK)
