"""Split images into train and val by groups, so that every class is on both sides and no look-alikes are."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.split.grouping import hash_bytes, near_pairs, words_of
from construction_panoptic.annotations.split.stratification import Group, place_groups
from construction_panoptic.errors import InputDataError

TRAIN, VAL = "train", "val"
_ALL_PAIRS = 2_000_000_000  # train images times val images


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
    # In the order of their smallest key, whatever their numbers are.
    images: dict[int, list[str]] = defaultdict(list)
    for key, group in zip(table["key"], table["group"], strict=True):
        images[group].append(key)
    classes_of = dict(zip(keys, classes, strict=True))
    members = [
        Group(number, len(alike), Counter(class_id for key in alike for class_id in set(classes_of[key])))
        for number, alike in images.items()
    ]
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


def check_sides(table: pd.DataFrame, place: str) -> None:
    """Raise `InputDataError`, which names the place: a row for an image twice, or another side than train and val."""
    if (twice := table["key"].duplicated()).any():
        raise InputDataError(f"{place}: image {table.loc[twice, 'key'].iloc[0]!r} is listed twice.")
    if (other := ~table["split"].isin([TRAIN, VAL])).any():
        row = table[other].iloc[0]
        raise InputDataError(f"{place}: image {row['key']!r} has the side {row['split']!r}; give train or val.")


def audit_split(
    records: Iterable[ConvertedRecord], table: pd.DataFrame, *, max_distance: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check a split, as `split` gives it, against the images themselves; these are iterated over once.

    The distances across the split are computed anew from the perceptual hashes of all pairs, not taken from the
    grouping; images that differ in ``max_distance`` bits or fewer are near-duplicates. Raises `InputDataError`: the
    table and the records name different images, a side is empty, or a group or near-duplicates are on both sides.

    Gives a table with a row for each class that occurs: class_id, groups, images_train, images_val, segments_train,
    segments_val, on_both_sides. And facts, plain numbers, among them ``smallest_distance_across`` (bits; None where
    there are more than 2·10⁹ pairs of train and val images, of which then only near-duplicates are looked for), and
    ``classes_on_one_side`` (ids of classes in two or more groups that could not be on both sides).
    """
    check_sides(table, "the split")
    table = table.sort_values("key", ignore_index=True)
    images = sorted((r.key, r.phash, tuple(segment.category_id for segment in r.segments)) for r in records)
    keys = [key for key, _, _ in images]
    if keys != (listed := table["key"].tolist()):
        odd = (Counter(keys) - Counter(listed)) | (Counter(listed) - Counter(keys))
        raise InputDataError(
            f"{len(odd)} image(s) are only in the split or only among the converted images, such as {min(odd)!r}; "
            "split again."
        )
    for side in (TRAIN, VAL):
        if not (table["split"] == side).any():
            raise InputDataError(f"the {side} side has no images; split again.")
    sides = table.groupby("group")["split"].nunique()
    if (sides > 1).any():
        group = sides.index[sides > 1][0]
        some = ", ".join(table.loc[table["group"] == group, "key"][:4])
        raise InputDataError(f"group {group} ({some}) is in both train and val; split again.")
    is_val = (table["split"] == VAL).to_numpy()
    images_val = int(is_val.sum())
    few = images_val * (len(keys) - images_val) <= _ALL_PAIRS
    hashes = hash_bytes([phash for _, phash, _ in images], keys)
    smallest, (one, other), across = (_all_across if few else _near_across)(hashes, is_val, max_distance)
    if across:
        raise InputDataError(
            f"{across} pair(s) of near-duplicate images are in train and val, such as {keys[one]!r} and "
            f"{keys[other]!r}, which differ in {smallest} bits (limit {max_distance}); group with the same distance, "
            "then split again."
        )
    classes = _class_table([of_image for _, _, of_image in images], table)
    one_side = classes.loc[(classes["groups"] >= 2) & ~classes["on_both_sides"], "class_id"]
    return classes, {
        "images": len(keys),
        "images_train": len(keys) - images_val,
        "images_val": images_val,
        "groups": len(sides),
        "largest_group": int(table["group"].value_counts().max()),
        "val_fraction": images_val / len(keys),
        "shared_groups": 0,
        "near_duplicates_across": across,
        "smallest_distance_across": smallest,
        "classes_on_one_side": one_side.tolist(),
    }


def _all_across(
    hashes: NDArray[np.uint8], is_val: NDArray[np.bool_], max_distance: int
) -> tuple[int | None, tuple[int, int], int]:
    """Smallest distance between a train and a val image, that pair, and the count of near-duplicates."""
    words, train = words_of(hashes), np.flatnonzero(~is_val)
    of_train = np.ascontiguousarray(words[:, train])
    smallest, pair, across = 8 * hashes.shape[1] + 1, (0, 0), 0
    for image in np.flatnonzero(is_val).tolist():
        distance = np.bitwise_count(of_train ^ words[:, image, None]).sum(axis=0, dtype=np.int64)
        across += int(np.count_nonzero(distance <= max_distance))
        if distance.min() < smallest:
            smallest, pair = int(distance.min()), (int(train[distance.argmin()]), image)
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


def _class_table(classes_of: Sequence[Sequence[int]], table: pd.DataFrame) -> pd.DataFrame:
    """Count each class in the images of a split, whose classes, one a segment, are given in the order of its rows."""
    groups: dict[int, set[int]] = defaultdict(set)
    counts: Counter[tuple[str, int]] = Counter()
    for classes, group, side in zip(classes_of, table["group"], table["split"], strict=True):
        for class_id, number in Counter(classes).items():
            groups[class_id].add(group)
            counts[f"images_{side}", class_id] += 1
            counts[f"segments_{side}", class_id] += number
    found = pd.DataFrame({"class_id": sorted(groups)})
    found["groups"] = [len(groups[class_id]) for class_id in found["class_id"]]
    for name in ("images_train", "images_val", "segments_train", "segments_val"):
        found[name] = [counts[name, class_id] for class_id in found["class_id"]]
    return found.assign(on_both_sides=(found["images_train"] > 0) & (found["images_val"] > 0))
