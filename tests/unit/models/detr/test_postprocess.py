from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from construction_panoptic.models.detr.postprocess import QueryMasks, keep_queries, panoptic_result
from construction_panoptic.models.protocol import Segmentation

STUFF, OTHER_STUFF, THING = 1, 2, 5
IS_THING = {STUFF: False, OTHER_STUFF: False, 3: False, 4: True, THING: True, 6: True}

# category id, area, score and pixels of a segment
Region = tuple[int, int, float, np.ndarray]


def literal_result(
    masks: Tensor, scores: list[float], labels: list[int], processed: tuple[int, int], target: tuple[int, int]
) -> list[Region]:
    """The segments, worked out query by query, everything again after each dropped segment."""
    height, width = processed
    alive = list(range(len(labels)))
    while True:
        best = np.full((height, width), -np.inf)
        painted = np.zeros((height, width, 3), dtype=np.uint8)
        names: list[tuple[str, int]] = []
        for query in alive:
            upsampled = F.interpolate(masks[query][None, None], size=processed, mode="bilinear", align_corners=False)
            logits = upsampled[0, 0].numpy()
            name = ("thing", query) if IS_THING[labels[query]] else ("stuff", labels[query])
            if name not in names:
                names.append(name)
            painted[logits > best] = (names.index(name) + 1, 7, 0)
            best = np.maximum(best, logits)
        resized = np.asarray(Image.fromarray(painted).resize((target[1], target[0]), Image.Resampling.NEAREST))[..., 0]
        regions: list[Region] = []
        dropped = []
        for number, name in enumerate(names, start=1):
            members = [q for q in alive if name == (("thing", q) if IS_THING[labels[q]] else ("stuff", labels[q]))]
            area = int((resized == number).sum())
            if area <= 4:
                dropped += members
            regions.append((labels[members[0]], area, max(scores[q] for q in members), resized == number))
        if not dropped:
            return regions
        alive = [query for query in alive if query not in dropped]


def regions_of(result: Segmentation) -> list[Region]:
    ids = result.id_map
    return [(s["category_id"], s["area"], s["score"], ids == s["id"]) for s in result.segments]


def assert_well_formed(result: Segmentation, target: tuple[int, int]) -> None:
    assert result.id_map.dtype == np.int32
    assert tuple(result.id_map.shape) == target
    ids, areas = np.unique(result.id_map, return_counts=True)
    if not result.segments:
        assert ids.tolist() == [0]
        return
    assert [s["id"] for s in result.segments] == list(range(1, len(result.segments) + 1)) == ids.tolist()
    assert [s["area"] for s in result.segments] == areas.tolist()
    assert areas.min() > 4
    assert all(s["isthing"] is IS_THING[s["category_id"]] for s in result.segments)
    stuff = [s["category_id"] for s in result.segments if not s["isthing"]]
    assert len(stuff) == len(set(stuff))


def assert_same_regions(ours: list[Region], expected: list[Region]) -> None:
    assert [region[:2] for region in ours] == [region[:2] for region in expected]
    assert [region[2] for region in ours] == pytest.approx([region[2] for region in expected])
    assert all(np.array_equal(a[3], b[3]) for a, b in zip(ours, expected, strict=True))


def result_of(
    masks: Tensor, labels: Sequence[int], size: tuple[int, int], target: tuple[int, int] | None = None
) -> Segmentation:
    queries = QueryMasks(masks, torch.linspace(0.9, 0.99, len(labels)), torch.tensor(labels, dtype=torch.int64))
    return panoptic_result(queries, processed_size=size, target_size=target or size, is_thing=IS_THING)


def regions_as_masks(owner: list[list[int]], queries: int, second: list[list[int]] | None = None) -> Tensor:
    """Logits [K, h, w] in which each pixel's owner is highest, and ``second``, where given, comes next."""
    pixels = torch.tensor(owner)
    masks = torch.zeros(queries, *pixels.shape)
    if second is not None:
        masks.scatter_(0, torch.tensor(second)[None], 5.0)
    return masks.scatter_(0, pixels[None], 10.0)


sides = st.tuples(st.integers(2, 48), st.integers(2, 48))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    labels=st.lists(st.sampled_from(sorted(IS_THING)), max_size=9),
    processed=sides,
    target=st.one_of(st.none(), st.tuples(st.integers(2, 90), st.integers(2, 90))),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_equals_the_literal_version(
    seed: int,
    labels: list[int],
    processed: tuple[int, int],
    target: tuple[int, int] | None,
    spread: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    # The larger the spread between queries, the more of them win few pixels or none.
    low = torch.randint(2, 10, (2,), generator=generator).tolist()
    masks = torch.randn(count, *low, generator=generator) * 2
    masks = masks + spread * torch.randn(count, 1, 1, generator=generator)
    scores = torch.rand(count, generator=generator)
    size = target or processed

    queries = QueryMasks(masks, scores, torch.tensor(labels, dtype=torch.int64))
    result = panoptic_result(queries, processed_size=processed, target_size=size, is_thing=IS_THING)

    assert_well_formed(result, size)
    expected = literal_result(masks, scores.tolist(), labels, processed, size)
    assert_same_regions(regions_of(result), expected)


def test_without_detection_everything_is_void() -> None:
    result = result_of(torch.zeros(0, 5, 6), [], (20, 24), (40, 50))
    assert result.segments == []
    assert tuple(result.id_map.shape) == (40, 50)
    assert not result.id_map.any()


@pytest.mark.parametrize("label", [STUFF, THING])
def test_one_detection_covers_the_image(label: int) -> None:
    result = result_of(torch.randn(1, 5, 6) - 20, [label], (20, 24), (41, 50))
    assert np.unique(result.id_map).tolist() == [1]
    (segment,) = result.segments
    assert (segment["id"], segment["category_id"], segment["area"]) == (1, label, 41 * 50)
    assert segment["score"] == pytest.approx(0.9)


def test_queries_of_one_stuff_class_form_one_segment_and_things_do_not() -> None:
    owner = [[0, 0, 1, 1, 2, 2, 3, 3]] * 4
    result = result_of(regions_as_masks(owner, 4), [STUFF, THING, STUFF, THING], (4, 8))
    assert [(s["category_id"], s["area"]) for s in result.segments] == [(STUFF, 16), (THING, 8), (THING, 8)]
    assert result.id_map[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    assert result.segments[0]["score"] == pytest.approx(torch.linspace(0.9, 0.99, 4)[2].item())


def test_stuff_stays_merged_when_a_tiny_segment_is_dropped() -> None:
    # Queries 0 and 2 are the same stuff; 1 is a thing of four pixels; 3 is second-best everywhere.
    owner = [[0, 0, 0, 1, 2, 2]] * 4 + [[3] * 6]
    masks = regions_as_masks(owner, 4, second=[[3] * 6] * 5)
    result = result_of(masks, [STUFF, THING, STUFF, OTHER_STUFF], (5, 6))
    assert [(s["category_id"], s["area"]) for s in result.segments] == [(STUFF, 20), (OTHER_STUFF, 10)]
    assert result.id_map.tolist() == [[1, 1, 1, 2, 1, 1]] * 4 + [[2] * 6]


def test_a_stuff_query_of_few_pixels_counts_with_its_class() -> None:
    owner = [[0] * 6, [0] * 6, [1, 1, 1, 2, 2, 2]]
    result = result_of(regions_as_masks(owner, 3), [THING, STUFF, STUFF], (3, 6))
    assert [(s["category_id"], s["area"]) for s in result.segments] == [(THING, 12), (STUFF, 6)]


def test_a_pixel_of_a_dropped_segment_goes_to_the_next_best() -> None:
    owner = [[0] * 5, [0, 1, 1, 1, 1], [2] * 5, [2] * 5]
    second = [[2] * 5] * 4
    result = result_of(regions_as_masks(owner, 3, second), [THING, THING, THING], (4, 5))
    assert [s["area"] for s in result.segments] == [6, 14]
    assert result.id_map[1].tolist() == [1, 2, 2, 2, 2]


def test_when_every_segment_is_tiny_everything_is_void() -> None:
    result = result_of(regions_as_masks([[0, 1], [2, 2]], 3), [THING, THING, THING], (2, 2))
    assert result.segments == []
    assert not result.id_map.any()


def test_tiny_is_measured_in_the_result_not_in_the_processed_image() -> None:
    owner = [[0] * 6, [0, 1, 1, 1, 1, 0], [0] * 6]
    masks = regions_as_masks(owner, 2)
    assert [s["area"] for s in result_of(masks, [THING, THING], (3, 6)).segments] == [18]
    assert [s["area"] for s in result_of(masks, [THING, THING], (3, 6), (6, 12)).segments] == [56, 16]


def test_a_label_that_is_no_category_takes_no_part() -> None:
    masks = regions_as_masks([[0] * 8] * 4, 2)
    result = result_of(masks, [0, THING], (4, 8))
    assert [(s["category_id"], s["area"]) for s in result.segments] == [(THING, 32)]
    assert result_of(masks[:1], [0], (4, 8)).segments == []


def test_low_precision_masks_are_upsampled_in_float32() -> None:
    torch.manual_seed(0)
    masks = torch.randn(5, 8, 8).bfloat16()
    labels = [STUFF, THING, STUFF, THING, OTHER_STUFF]
    low, full = (result_of(m, labels, (50, 60)) for m in (masks, masks.float()))
    np.testing.assert_array_equal(low.id_map, full.id_map)


def test_memory_of_a_large_result_is_little_more_than_its_ids() -> None:
    torch.manual_seed(0)
    masks = torch.randn(6, 50, 67) + torch.randn(6, 1, 1)
    size = (3875, 5164)
    tracemalloc.start()
    result = result_of(masks, [STUFF, THING, STUFF, THING, THING, OTHER_STUFF], (200, 267), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(s["area"] for s in result.segments) == size[0] * size[1]
    assert peak < 1.2 * 4 * size[0] * size[1]


@pytest.mark.gpu
def test_result_on_cuda_equals_that_on_the_cpu() -> None:
    torch.manual_seed(0)
    masks = (torch.randn(8, 12, 16) + 2 * torch.randn(8, 1, 1)).round()
    labels = [STUFF, THING, STUFF, THING, THING, OTHER_STUFF, 3, 6]
    here, there = (result_of(m, labels, (48, 64), (70, 90)) for m in (masks, masks.cuda()))
    assert (here.id_map != there.id_map).mean() < 1e-3  # equal logits may be rounded apart


def test_keep_queries_takes_confident_objects_only() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 6) * 4
    kept, scores, labels = keep_queries(logits, threshold=0.7)
    expected = []
    for query, row in enumerate(logits):
        probability = torch.softmax(row, dim=0)
        best = int(probability.argmax())
        if best != 5 and probability[best] > 0.7:
            expected.append((query, best, float(probability[best])))
    assert 0 < len(expected) < 200
    assert kept.tolist() == [query for query, _, _ in expected]
    assert labels.tolist() == [label for _, label, _ in expected]
    assert scores.tolist() == pytest.approx([score for _, _, score in expected])


def test_keep_queries_threshold_is_exclusive_and_nothing_may_be_kept() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    assert [len(part) for part in keep_queries(logits, threshold=0.5)] == [0, 0, 0]
    assert keep_queries(logits, threshold=0.4999)[0].tolist() == [0]
