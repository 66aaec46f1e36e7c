"""Classes and boxes of one image."""

import torch

from benchmarks import facebook
from benchmarks.inputs import our_model, peer_model, random_images
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main

SIZE = (800, 1066)


def peer(options: Options) -> Step:
    model = peer_model(options).detr
    images = random_images(options, 1, *SIZE)

    @torch.inference_mode()
    def step() -> Outputs:
        outputs = model(pixel_values=images, pixel_mask=torch.ones_like(images[:, 0]))
        return {"probabilities": outputs.logits.softmax(-1), "boxes": outputs.pred_boxes}

    return step


def published(options: Options) -> Step:
    model = facebook.panoptic_model(options).detr
    images = facebook.batch(options, random_images(options, 1, *SIZE))

    @torch.inference_mode()
    def step() -> Outputs:
        outputs = model(images)
        return {"probabilities": outputs["pred_logits"].softmax(-1), "boxes": outputs["pred_boxes"]}

    return step


def ours(options: Options) -> Step:
    model = our_model(options).detr
    images = random_images(options, 1, *SIZE)

    @torch.inference_mode()
    def step() -> Outputs:
        outputs = model(images)
        return {"probabilities": outputs["pred_logits"].softmax(-1), "boxes": outputs["pred_boxes"]}

    return step


BENCHMARK = Benchmark(
    name="detector_inference",
    workload="Detector inference, R50, 66 logits, 100 queries, one 800x1066 image, float32",
    peer="transformers DETR",
    sides={"peer": peer, "ours": ours},
    published=published,
)

if __name__ == "__main__":
    main(BENCHMARK)
