"""Split images into train and val by groups, so that every class is on both sides and no look-alikes are."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.split.grouping import hash_bytes, near_pairs
from construction_panoptic.annotations.split.stratification import Group, place_groups
from construction_panoptic.errors import InputDataError

TRAIN, VAL = "train", "val"
_CHUNK = 2048
_ALL_PAIRS = 2_000_000_000  # train images times val images


class SplitAudit(NamedTuple):
    """What `audit_split` found.

    ``classes`` has a row for each class that occurs: class_id, groups, images_train, images_val, segments_train,
    segments_val, on_both_sides. ``facts`` are plain numbers, among them ``smallest_distance_across`` (bits; None where
    there are more than 2·10⁹ pairs of train and val images, of which then only near-duplicates are looked for), and
    ``classes_on_one_side`` (ids of classes in two or more groups that could not be on both sides).
    """

    classes: pd.DataFrame
    facts: dict[str, Any]


def split(
    keys: Sequence[str],
    groups: Sequence[int],
    classes: Sequence[Collection[int]],
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """Divide images into train and val, whole groups at a time, stratified by class.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, ECML PKDD 2011)
    over groups: the class with the fewest groups left is placed first. Where that leaves a class with two or more
    groups on one side only, an integer program moves as few images as it can, so that as many classes as possible are
    on both. A group with a class of its own goes to train unless another class needs it in val, since it makes no sense
    to evaluate what was never trained on.

    Each image has a unique key, a group number and category ids, of things and stuff; ``seed`` decides among equally
    good places. Gives a table sorted by key with the columns key, group and split ("train" or "val"), which does not
    depend on the order of the images. Raises `InputDataError`: fewer than two groups.
    """
    table = groups_of_keys(keys, groups)
    members = _collect_groups(table, dict(zip(keys, classes, strict=True)))
    if len(members) < 2:
        raise InputDataError(
            f"a train and a val side need at least two groups of images that do not look alike, but the {len(keys)} "
            f"accepted image(s) form {len(members)}; add images, or lower the near-duplicate distance."
        )
    generator = np.random.default_rng(seed)
    members = [members[position] for position in generator.permutation(len(members))]
    in_val = place_groups(members, val_fraction)
    val_groups = {group.number for group, val in zip(members, in_val, strict=True) if val}
    table["split"] = np.where(table["group"].isin(val_groups), VAL, TRAIN)
    return table


def groups_of_keys(keys: Sequence[str], groups: Sequence[int]) -> pd.DataFrame:
    """A table with the columns key and group, sorted by key."""
    return pd.DataFrame({"key": list(keys), "group": list(groups)}).sort_values("key", ignore_index=True)


def split_digest(table: pd.DataFrame) -> str:
    """SHA-256 (hexadecimal) of which image is on which side, whatever the order of the rows."""
    rows = sorted(zip(table["key"], table["split"], strict=True))
    return hashlib.sha256("".join(f"{key}\t{side}\n" for key, side in rows).encode()).hexdigest()


def audit_split(records: Iterable[ConvertedRecord], table: pd.DataFrame, *, max_distance: int) -> SplitAudit:
    """Check a split, as `split` gives it, against the images themselves; these are iterated over once.

    The distances across the split are computed anew from the perceptual hashes of all pairs, not taken from the
    grouping; images that differ in ``max_distance`` bits or fewer are near-duplicates. Raises `InputDataError`: the
    table and the records name different images, a side is empty, or a group or near-duplicates are on both sides.
    """
    images = [(r.key, r.phash, tuple(segment.category_id for segment in r.segments)) for r in records]
    side = _sides([key for key, _, _ in images], table)
    sides = table.groupby("group")["split"].nunique()
    if (sides > 1).any():
        group = sides.index[sides > 1][0]
        some = ", ".join(sorted(table.loc[table["group"] == group, "key"])[:4])
        raise InputDataError(f"group {group} ({some}) is in both train and val; split again.")
    smallest, pair, across = _distance_across({key: phash for key, phash, _ in images}, side, max_distance)
    if across:
        raise InputDataError(
            f"{across} pair(s) of near-duplicate images are in train and val, such as {pair[0]!r} and {pair[1]!r}, "
            f"which differ in {smallest} bits (limit {max_distance}); group with the same distance, then split again."
        )
    group_of = dict(zip(table["key"], table["group"], strict=True))
    classes = _class_table({key: classes for key, _, classes in images}, side, group_of)
    one_side = classes.loc[(classes["groups"] >= 2) & ~classes["on_both_sides"], "class_id"]
    val_images = sum(value == VAL for value in side.values())
    facts = {
        "images": len(side),
        "images_train": len(side) - val_images,
        "images_val": val_images,
        "groups": int(table["group"].nunique()),
        "largest_group": int(table["group"].value_counts().max()),
        "val_fraction": val_images / len(side),
        "shared_groups": 0,
        "near_duplicates_across": across,
        "smallest_distance_across": smallest,
        "classes_on_one_side": [int(class_id) for class_id in one_side],
    }
    return SplitAudit(classes, facts)


def _collect_groups(table: pd.DataFrame, classes: Mapping[str, Collection[int]]) -> list[Group]:
    """Groups in the order of their smallest key, whatever their numbers are."""
    images: dict[int, list[str]] = defaultdict(list)
    for key, group in zip(table["key"], table["group"], strict=True):
        images[group].append(key)
    return [
        Group(number, len(members), dict(Counter(c for key in members for c in set(classes[key]))))
        for number, members in images.items()
    ]


def _sides(listed: Sequence[str], table: pd.DataFrame) -> dict[str, str]:
    side = dict(zip(table["key"], table["split"], strict=True))
    keys = set(listed)
    if len(side) != len(table) or len(keys) != len(listed):
        raise InputDataError("an image is listed twice; convert and split again.")
    if unknown := set(side.values()) - {TRAIN, VAL}:
        raise InputDataError(f"the split table has {sorted(unknown)[0]!r} for a side; only train and val exist.")
    if missing := keys ^ side.keys():
        raise InputDataError(
            f"{len(missing)} image(s) are only in the split or only among the converted images, such as "
            f"{min(missing)!r}; split again."
        )
    for name in (TRAIN, VAL):
        if name not in side.values():
            raise InputDataError(f"the {name} side has no images; split again.")
    return side


def _distance_across(
    hash_of: Mapping[str, str], side: Mapping[str, str], max_distance: int
) -> tuple[int | None, tuple[str, str], int]:
    """Smallest distance between a train and a val image, that pair, and the count of near-duplicates."""
    keys = sorted(hash_of)
    hashes = hash_bytes([hash_of[key] for key in keys], keys)
    is_val = np.array([side[key] == VAL for key in keys])
    few = int(is_val.sum()) * int((~is_val).sum()) <= _ALL_PAIRS
    smallest, (one, other), across = (_all_across if few else _near_across)(hashes, is_val, max_distance)
    return smallest, (keys[one], keys[other]), across


def _all_across(
    hashes: NDArray[np.uint8], is_val: NDArray[np.bool_], max_distance: int
) -> tuple[int | None, tuple[int, int], int]:
    # Signs of bits: their product counts equal bits minus different bits. Exact in float32 up to 2^24 bits.
    signs: NDArray[np.float32] = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    train, val = np.flatnonzero(~is_val), np.flatnonzero(is_val)
    smallest, pair, across = signs.shape[1] + 1, (0, 0), 0
    for start in range(0, len(train), _CHUNK):
        some = train[start : start + _CHUNK]
        for begin in range(0, len(val), _CHUNK):
            others = val[begin : begin + _CHUNK]
            distance = (signs.shape[1] - signs[some] @ signs[others].T) / 2
            across += int((distance <= max_distance).sum())
            row, column = divmod(int(distance.argmin()), len(others))
            if distance[row, column] < smallest:
                smallest, pair = int(distance[row, column]), (int(some[row]), int(others[column]))
    return smallest, pair, across


def _near_across(
    hashes: NDArray[np.uint8], is_val: NDArray[np.bool_], max_distance: int
) -> tuple[int | None, tuple[int, int], int]:
    """The same from near-duplicates alone: the smallest distance is None where there are none."""
    # Equal hashes on one side are one.
    sided = np.column_stack([hashes, is_val.astype(np.uint8)])
    unique, image, count = np.unique(sided, axis=0, return_index=True, return_counts=True)
    rows, in_val = np.ascontiguousarray(unique[:, :-1]), unique[:, -1] == 1
    codes = [np.zeros(0, dtype=np.int64)]
    for pair in near_pairs(rows, max_distance):
        left, right = np.stack(pair)[:, in_val[pair[0]] != in_val[pair[1]]]
        codes.append(np.where(in_val[left], right, left) * len(rows) + np.where(in_val[left], left, right))
    train, val = np.divmod(np.unique(np.concatenate(codes)), len(rows))
    if not len(train):
        return None, (0, 0), 0
    distance = np.bitwise_count(rows[train] ^ rows[val]).sum(axis=1)
    best = int(distance.argmin())
    across = int((count[train] * count[val]).sum())
    return int(distance[best]), (int(image[train[best]]), int(image[val[best]])), across


def _class_table(
    classes_of: Mapping[str, Sequence[int]], side: Mapping[str, str], group_of: Mapping[str, int]
) -> pd.DataFrame:
    groups: dict[int, set[int]] = defaultdict(set)
    counts: Counter[tuple[str, str, int]] = Counter()
    for key, classes in classes_of.items():
        for class_id, number in Counter(classes).items():
            groups[class_id].add(group_of[key])
            counts["images", side[key], class_id] += 1
            counts["segments", side[key], class_id] += number
    table = pd.DataFrame({"class_id": sorted(groups)})
    table["groups"] = [len(groups[class_id]) for class_id in table["class_id"]]
    for what in ("images", "segments"):
        for here in (TRAIN, VAL):
            table[f"{what}_{here}"] = [counts[what, here, class_id] for class_id in table["class_id"]]
    return table.assign(on_both_sides=(table[f"images_{TRAIN}"] > 0) & (table[f"images_{VAL}"] > 0))
