"""From an image to its panoptic PNG, with ten queries kept.

The peer computes a mask of every query and merges the kept ones in the published way. The weights are random,
so the threshold is set to what keeps ten queries, the same on both sides.
"""

import torch

from benchmarks import facebook
from benchmarks.inputs import image_size, is_thing_of, our_model, peer_model, random_images
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from benchmarks.published import keep, merge_masks, threshold_for
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.models.detr import panoptic_result, query_masks

SIZE = (800, 1066)


def _kept(options: Options) -> int:
    return 4 if options.small else 10


def peer(options: Options) -> Step:
    model = peer_model(options)
    images = random_images(options, 1, *SIZE)
    size = image_size(options, *SIZE)
    mask = torch.ones_like(images[:, 0])
    with torch.inference_mode():
        threshold = threshold_for(model.detr(pixel_values=images, pixel_mask=mask).logits[0], _kept(options))

    @torch.inference_mode()
    def step() -> Outputs:
        outputs = model(pixel_values=images, pixel_mask=mask)
        queries, labels = keep(outputs.logits[0], threshold)
        id_map, _ = merge_masks(
            outputs.pred_masks[0, queries],
            labels,
            processed_size=size,
            target_size=size,
            is_thing=is_thing_of(options),
        )
        return {"id_map": id_map, "boxes": outputs.pred_boxes}

    return step


def published(options: Options) -> Step:
    model = facebook.panoptic_model(options)
    images = facebook.batch(options, random_images(options, 1, *SIZE))
    size = image_size(options, *SIZE)
    with torch.inference_mode():
        threshold = threshold_for(model.detr(images)["pred_logits"][0], _kept(options))
    merge = facebook.panoptic_merging(options, threshold)

    @torch.inference_mode()
    def step() -> Outputs:
        outputs = model(images)
        return {"id_map": merge(outputs, size), "boxes": outputs["pred_boxes"]}

    return step


def ours(options: Options) -> Step:
    model = our_model(options)
    images = random_images(options, 1, *SIZE)
    size, is_thing = image_size(options, *SIZE), is_thing_of(options)
    with torch.inference_mode():
        threshold = threshold_for(model.detr(images)["pred_logits"][0], _kept(options))

    @torch.inference_mode()
    def step() -> Outputs:
        features = model.features(images)
        (kept,) = query_masks(model, features, [size], is_thing, threshold=threshold)
        result = panoptic_result(kept, processed_size=size, target_size=size, is_thing=is_thing)
        encode_id_map(result.id_map)
        return {"id_map": result.id_map, "boxes": features.pred_boxes}

    return step


BENCHMARK = Benchmark(
    name="panoptic_inference",
    workload="Panoptic inference, R50, 66 logits, 100 queries, 10 kept, one 800x1066 image, float32",
    peer="transformers DETR",
    sides={"peer": peer, "ours": ours},
    published=published,
)

if __name__ == "__main__":
    main(BENCHMARK)
