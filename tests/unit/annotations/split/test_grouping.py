import random
import time
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from construction_panoptic.annotations.split import grouping
from construction_panoptic.annotations.split.grouping import near_duplicate_groups, video_names
from construction_panoptic.config.conversion import SplitSettings
from construction_panoptic.errors import InputDataError

pytestmark = pytest.mark.medium

BITS = 256
DEFAULT = SplitSettings().video_pattern or ""


def as_hex(value: int) -> str:
    return f"{value:0{BITS // 4}x}"


def flip(value: int, *bits: int) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def brute_force(values: list[int], keys: list[str], max_distance: int) -> set[frozenset[str]]:
    """Literal flood fill over all pairs."""
    unseen, groups = set(range(len(values))), set()
    while unseen:
        stack = [unseen.pop()]
        members = set(stack)
        while stack:
            here = stack.pop()
            near = {other for other in unseen if (values[here] ^ values[other]).bit_count() <= max_distance}
            unseen -= near
            members |= near
            stack.extend(near)
        groups.add(frozenset(keys[member] for member in members))
    return groups


def as_sets(groups: list[int], keys: list[str]) -> set[frozenset[str]]:
    members = defaultdict(set)
    for group, key in zip(groups, keys, strict=True):
        members[group].add(key)
    return {frozenset(group) for group in members.values()}


def clustered_hashes(seed: int, clusters: int, members: int, spread: int) -> list[int]:
    generator = random.Random(seed)
    values = []
    for _ in range(clusters):
        centre = generator.getrandbits(BITS)
        values += [flip(centre, *generator.sample(range(BITS), generator.randint(0, spread))) for _ in range(members)]
    generator.shuffle(values)
    return values


def test_neighbours_are_chained_and_the_threshold_is_inclusive() -> None:
    start = random.Random(1).getrandbits(BITS)
    values = [
        start,
        flip(start, 0, 9, 77),
        flip(start, 0, 9, 77, 130, 200, 255),
        flip(start, *range(100, 108)),
    ]
    hashes, keys = [as_hex(value) for value in values], list("abcd")
    assert near_duplicate_groups(hashes, keys, 3) == [0, 0, 0, 1]
    assert near_duplicate_groups(hashes, keys, 2) == [0, 1, 2, 3]


def test_equal_hashes_are_one_group_at_distance_zero() -> None:
    assert near_duplicate_groups([as_hex(7), as_hex(6), as_hex(7)], ["b", "a", "c"], 0) == [1, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    clusters=st.integers(1, 12),
    members=st.integers(1, 5),
    spread=st.integers(0, 12),
    max_distance=st.integers(0, 40),
)
def test_groups_equal_a_flood_fill(seed: int, clusters: int, members: int, spread: int, max_distance: int) -> None:
    values = clustered_hashes(seed, clusters, members, spread)
    keys = [f"image{index}" for index in range(len(values))]
    groups = near_duplicate_groups([as_hex(value) for value in values], keys, max_distance)
    assert as_sets(groups, keys) == brute_force(values, keys, max_distance)


@pytest.mark.parametrize("max_distance", [0, 1, 2, 10, 11, 300])
@pytest.mark.parametrize("slips", [0, 1])
def test_bands_and_all_pairs_agree(max_distance: int, slips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = clustered_hashes(5, 12, 5, 8)
    hashes = grouping.hash_bytes([as_hex(value) for value in values], [str(value) for value in values])
    hashes = np.unique(hashes, axis=0)

    def pairs(way: int | None) -> set[tuple[int, int]]:
        monkeypatch.setattr(grouping, "_cheapest_slips", lambda *_: way)
        found = grouping.near_pairs(hashes, max_distance)
        return {tuple(sorted(pair)) for one in found for pair in zip(*(side.tolist() for side in one), strict=True)}

    expected = {
        (one, other)
        for one in range(len(hashes))
        for other in range(one + 1, len(hashes))
        if int(np.bitwise_count(hashes[one] ^ hashes[other]).sum()) <= max_distance
    }
    assert pairs(slips) == expected == pairs(None)


def test_bands_are_taken_where_they_are_less_work() -> None:
    generator = np.random.default_rng(0)
    few, many = (generator.integers(0, 256, (count, 32), dtype=np.uint8) for count in (500, 250_000))
    assert grouping._cheapest_slips(few, 24) is None
    assert grouping._cheapest_slips(many, 3) == 0
    assert grouping._cheapest_slips(many, 24) == 1
    # Hashes that agree in most bits fill the buckets: then there is nothing to be saved.
    many[:, :30] = 0
    assert grouping._cheapest_slips(many, 24) is None


def test_neighbours_fold_into_groups_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    values = clustered_hashes(6, 40, 6, 5)
    hashes, keys = [as_hex(value) for value in values], [f"{index:03}" for index in range(len(values))]
    expected = near_duplicate_groups(hashes, keys, 10)
    monkeypatch.setattr(grouping, "_FLUSH_EDGES", 20)
    assert near_duplicate_groups(hashes, keys, 10) == expected


def test_order_of_images_does_not_matter() -> None:
    values = clustered_hashes(3, 30, 4, 6)
    keys = [f"image{index:03}" for index in range(len(values))]
    expected = dict(zip(keys, near_duplicate_groups([as_hex(v) for v in values], keys, 12), strict=True))
    order = list(range(len(values)))
    random.Random(0).shuffle(order)
    shuffled = near_duplicate_groups([as_hex(values[i]) for i in order], [keys[i] for i in order], 12)
    assert dict(zip([keys[i] for i in order], shuffled, strict=True)) == expected
    first_members = [min(key for key in keys if expected[key] == group) for group in range(max(shuffled) + 1)]
    assert first_members == sorted(first_members)


def test_many_images_take_seconds_not_minutes() -> None:
    generator = np.random.default_rng(0)
    raw = generator.bytes(30_000 * 32)
    hashes = [raw[32 * index : 32 * index + 32].hex() for index in range(30_000)]
    hashes[29_999] = as_hex(flip(int(hashes[0], 16), 1, 2, 3))
    started = time.perf_counter()
    groups = near_duplicate_groups(hashes, [f"{index:05}" for index in range(30_000)], 10)
    assert time.perf_counter() - started < 10
    assert groups[29_999] == groups[0] == 0
    assert len(set(groups)) == 29_999


@pytest.mark.parametrize("length", [1, 3, 8, 20])
def test_other_hash_sizes_work(length: int) -> None:
    hashes = ["00" * length, "00" * (length - 1) + "01", "ff" * length]
    assert near_duplicate_groups(hashes, ["a", "b", "c"], 1) == [0, 0, 1]


def test_no_images_are_no_groups() -> None:
    assert near_duplicate_groups([], [], 10) == []


def test_bad_input_is_named() -> None:
    with pytest.raises(InputDataError, match=r"'wall/b\.jpg'.*'xyz'"):
        near_duplicate_groups([as_hex(1), "xyz"], ["wall/a.jpg", "wall/b.jpg"], 1)
    with pytest.raises(InputDataError, match=r"'wall/b\.jpg'.*8 bits.*256"):
        near_duplicate_groups([as_hex(1), "ff"], ["wall/a.jpg", "wall/b.jpg"], 1)


def test_cvat_frames_are_one_video_a_folder() -> None:
    keys = ["a/frame_000001.PNG", "a/frame_000002.PNG", "b/frame_000001.PNG", "a/frame_12.png", "a/photo.jpg"]
    first, second, other, *rest = video_names(keys, DEFAULT)
    assert first == second != other
    assert first is not None
    assert rest == [None, None]


def test_the_first_group_names_the_video() -> None:
    keys = ["a/site1_0001.jpg", "a/site1_0002.jpg", "a/site2_0001.jpg", "a/x.jpg"]
    names = video_names(keys, r"(.+)_\d+")
    assert names[0] == names[1] != names[2]
    assert names[3] is None


def test_videos_join_groups_of_near_duplicates() -> None:
    keys = ["a/1", "a/2", "a/3", "a/4", "a/0"]
    # 1 and 2 look alike, 2 and 3 are frames of one video, so the three belong together.
    hashes = ["00", "01", "f0", "0f", "ff"]
    assert near_duplicate_groups(hashes, keys, 1, [None, "v", "v", None, None]) == [1, 1, 1, 2, 0]
    assert near_duplicate_groups(hashes, keys, 1, [None] * 5) == [1, 1, 2, 3, 0]
    assert near_duplicate_groups([], [], 1, []) == []


def test_crops_of_a_photograph_can_stay_together() -> None:
    keys = ["f/IMG_7_scaled_0.jpg", "f/IMG_7_scaled_1.jpg", "f/IMG_71_scaled_0.jpg", "g/IMG_7_scaled_0.jpg", "f/x.jpg"]
    names = video_names(keys, r"(.*)_scaled_\d+")
    assert near_duplicate_groups(["00", "11", "22", "33", "44"], keys, 0, names) == [1, 1, 0, 3, 2]
