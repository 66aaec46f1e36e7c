"""Mask-wise merging against a slow loop written from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from construction_panoptic.models.detr import mask_merging
from construction_panoptic.models.detr.mask_merging import merged_masks
from construction_panoptic.models.detr.postprocess import QueryMasks

STUFF, OTHER_STUFF, THING = 1, 2, 3
IS_THING = {STUFF: False, OTHER_STUFF: False, THING: True}


def masks_of(*rows: str, sure: float = 8.0) -> Tensor:
    """Logits of masks one pixel high; ``#`` is inside."""
    return torch.tensor([[[sure if cell == "#" else -sure for cell in row]] for row in rows])


def merged(masks: Tensor, scores: list[float], labels: list[int], **changes: Any) -> tuple[list[int], list[Any]]:
    size = masks.shape[-2:]
    arguments: dict[str, Any] = {"processed_size": size, "target_size": size, "is_thing": IS_THING}
    arguments |= {"least_quality": (0.4, 0.3), **changes}
    result = merged_masks(QueryMasks(masks, torch.tensor(scores), torch.tensor(labels)), **arguments)
    segments = [(s["category_id"], s["area"], round(s["score"], 2)) for s in result.segments]
    assert [s["id"] for s in result.segments] == list(range(1, len(segments) + 1))
    assert [s["isthing"] for s in result.segments] == [IS_THING[s["category_id"]] for s in result.segments]
    assert [s["area"] for s in result.segments] == np.bincount(result.id_map.flatten())[1:].tolist()
    return result.id_map.flatten().tolist(), segments


def test_the_higher_quality_is_painted_first_and_the_rest_is_void() -> None:
    masks = masks_of("..######..........", "......########....")
    ids, segments = merged(masks, [0.6, 0.9], [THING, THING])
    assert segments == [(THING, 8, 0.9)]  # 4 of 6 pixels are free, but 4 pixels are tiny
    assert ids == [0] * 6 + [1] * 8 + [0] * 4
    ids, segments = merged(masks.repeat(1, 2, 1), [0.6, 0.9], [THING, THING])
    assert segments == [(THING, 16, 0.9), (THING, 8, 0.6)]
    assert ids == 2 * ([0] * 2 + [2] * 4 + [1] * 8 + [0] * 4)


def test_a_mask_that_is_mostly_taken_is_dropped() -> None:
    """Of 20 pixels 13 are taken: 0.35 is too little for a thing, enough for stuff."""
    masks = masks_of("#" * 13 + "." * 7, "#" * 20)
    assert merged(masks, [0.9, 0.8], [THING, THING])[1] == [(THING, 13, 0.9)]
    assert merged(masks, [0.9, 0.8], [THING, STUFF])[1] == [(THING, 13, 0.9), (STUFF, 7, 0.8)]


def test_the_queries_of_a_stuff_class_are_one_segment_with_the_highest_score() -> None:
    masks = masks_of("######........", "....######....", "........######")
    ids, segments = merged(masks, [0.5, 0.9, 0.7], [STUFF, OTHER_STUFF, STUFF])
    assert segments == [(OTHER_STUFF, 6, 0.9), (STUFF, 8, 0.7)]
    assert ids == [2] * 4 + [1] * 6 + [2] * 4


def test_quality_is_probability_times_certainty_inside_the_mask() -> None:
    masks = masks_of("######", sure=0.0)  # a probability of 0.5, which is inside
    assert merged(masks, [0.79], [THING])[1] == []
    assert merged(masks, [0.82], [THING])[1] == [(THING, 6, 0.41)]
    assert merged(masks, [0.62], [STUFF])[1] == [(STUFF, 6, 0.31)]
    assert merged(masks, [0.62], [STUFF], least_quality=(0.4, 0.4))[1] == []
    assert merged(masks - 1, [1.0], [THING], least_quality=(0.0, 0.0))[1] == []  # an empty mask


def test_unknown_labels_and_no_queries_at_all() -> None:
    assert merged(masks_of("######"), [0.9], [9]) == ([0] * 6, [])
    assert merged(torch.zeros(0, 1, 6), [], []) == ([0] * 6, [])


def by_definition(
    masks: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], target: tuple[int, int]
) -> tuple[np.ndarray, dict[int, tuple[int, float]]]:
    """Pixel by pixel, at the processed size, then resized by Pillow; tiny segments stay."""
    probabilities = F.interpolate(masks[:, None], size=size, mode="bilinear")[:, 0].sigmoid().numpy()
    entries = []
    for probability, score, label in zip(probabilities, scores.tolist(), labels.tolist(), strict=True):
        inside = [(y, x) for y in range(size[0]) for x in range(size[1]) if probability[y, x] >= 0.5]
        if inside:
            entries.append((score * float(np.mean([probability[cell] for cell in inside])), label, inside))
    ids = np.zeros(size, dtype=np.int32)
    found: dict[int, tuple[int, float]] = {}
    for quality, label, inside in sorted(entries, key=lambda entry: entry[0], reverse=True):
        free = [cell for cell in inside if ids[cell] == 0]
        if quality < (0.4 if IS_THING[label] else 0.3):
            continue
        if len(free) / len(inside) < (0.4 if IS_THING[label] else 0.2):
            continue
        same = [k for k, (category, _) in found.items() if category == label and not IS_THING[label]]
        segment = same[0] if same else len(found) + 1
        found.setdefault(segment, (label, quality))
        for cell in free:
            ids[cell] = segment
    resized = Image.fromarray(ids).resize(target[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized), found


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_the_definition_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(mask_merging, "CHUNK_PIXELS", 2000)  # a few masks at a time
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(14, 1, 5, 7, generator=generator) - 0.5
    masks = 12 * F.interpolate(coarse, size=(8, 10), mode="bicubic")[:, 0]
    scores = 0.2 + 0.8 * torch.rand(14, generator=generator)
    labels = torch.randint(1, 9, (14,), generator=generator).clamp(max=THING)  # most are things
    size, target = (30, 38), (45, 29)
    expected, found = by_definition(masks, scores, labels, size, target)
    sizes: dict[str, Any] = {"processed_size": size, "target_size": target, "is_thing": IS_THING}
    result = merged_masks(QueryMasks(masks, scores, labels), **sizes, least_quality=(0.4, 0.3))
    kept = [k for k in found if np.count_nonzero(expected == k) > 4]
    assert len(kept) > 2
    renumbered = np.zeros(len(found) + 1, np.int32)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    np.testing.assert_array_equal(result.id_map, renumbered[expected])
    assert [s["category_id"] for s in result.segments] == [found[k][0] for k in kept]
    np.testing.assert_allclose([s["score"] for s in result.segments], [found[k][1] for k in kept], rtol=1e-5)
