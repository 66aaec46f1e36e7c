"""From the mask logits of ten kept queries to the panoptic PNG."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import facebook
from benchmarks.inputs import NUM_CLASSES, image_size, is_thing_of
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from benchmarks.published import merge_masks
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.models.detr.postprocess import QueryMasks, panoptic_result

SIZE = (800, 1066)
# Six queries of stuff and four of things. No stuff class stands twice: there ours keeps pixels that the published code
# hands to others (docs/architecture.md).
LABELS = [1, 2, 3, 4, 5, 9, 20, 20, 31, 64]


def _masks(options: Options) -> Tensor:
    height, width = image_size(options, *SIZE)
    coarse = torch.randn(len(LABELS), 1, 9, 12, generator=torch.Generator().manual_seed(3))
    size = (-(-height // 4), -(-width // 4))
    return (4 * F.interpolate(coarse, size=size, mode="bicubic")[:, 0]).to(options.torch_device)


def peer(options: Options) -> Step:
    masks, size = _masks(options), image_size(options, *SIZE)

    @torch.inference_mode()
    def step() -> Outputs:
        id_map, _ = merge_masks(masks, LABELS, processed_size=size, target_size=size, is_thing=is_thing_of(options))
        return {"id_map": id_map}

    return step


def published(options: Options) -> Step:
    masks, size = _masks(options), image_size(options, *SIZE)
    logits = torch.zeros(1, len(LABELS), NUM_CLASSES + 1, device=masks.device)
    logits[0, torch.arange(len(LABELS)), LABELS] = 20.0
    outputs = {"pred_logits": logits, "pred_masks": masks[None], "pred_boxes": torch.zeros_like(logits[..., :4])}
    merge = facebook.panoptic_merging(options, 0.85)

    @torch.inference_mode()
    def step() -> Outputs:
        return {"id_map": merge(outputs, size)}

    return step


def ours(options: Options) -> Step:
    masks, size = _masks(options), image_size(options, *SIZE)
    queries = QueryMasks(masks, torch.full((len(LABELS),), 0.9), torch.tensor(LABELS))

    @torch.inference_mode()
    def step() -> Outputs:
        result = panoptic_result(queries, processed_size=size, target_size=size, is_thing=is_thing_of(options))
        encode_id_map(result.id_map)
        return {"id_map": result.id_map}

    return step


BENCHMARK = Benchmark(
    name="post_processing",
    workload="Post-processing, masks of 10 kept queries, 800x1066",
    peer="published algorithm",
    sides={"peer": peer, "ours": ours},
    published=published,
)

if __name__ == "__main__":
    main(BENCHMARK)
