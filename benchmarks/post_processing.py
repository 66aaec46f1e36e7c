"""From the mask logits of ten kept queries to the panoptic PNG."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import image_size, is_thing_of
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from benchmarks.published import merge_masks
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.detr import panoptic_result

SIZE = (800, 1066)
# Six queries of stuff, two of them of one class, and four of things.
LABELS = [1, 2, 3, 3, 5, 9, 20, 20, 31, 64]


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


def ours(options: Options) -> Step:
    masks, size = _masks(options), image_size(options, *SIZE)
    scores, labels = torch.full((len(LABELS),), 0.9), torch.tensor(LABELS)

    @torch.inference_mode()
    def step() -> Outputs:
        result = panoptic_result(
            masks, scores, labels, processed_size=size, target_size=size, is_thing=is_thing_of(options)
        )
        encode_id_map(result.id_map.numpy())
        return {"id_map": result.id_map}

    return step


BENCHMARK = Benchmark(
    name="post_processing",
    workload="Post-processing, masks of 10 kept queries, 800x1066",
    peer="published algorithm",
    sides={"peer": peer, "ours": ours},
)

if __name__ == "__main__":
    main(BENCHMARK)
