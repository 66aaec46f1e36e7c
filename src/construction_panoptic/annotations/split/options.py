"""Other ways to divide the images: a list of the user's, k folds, and frames of one video kept together."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from construction_panoptic.annotations.split.splitting import TRAIN, VAL, split
from construction_panoptic.errors import InputDataError, ParameterError

_SHOWN = 5


def video_names(keys: Sequence[str], pattern: str) -> list[str | None]:
    """Name the video that each image is a frame of.

    Args:
        keys: image keys.
        pattern: regular expression that the whole file name without suffix must match; its first group, if it
            has one, names the video within the image's folder.

    Returns:
        A name for each image, unique over folders; None for an image that does not match.

    Raises:
        ParameterError: the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ParameterError(f"video_pattern {pattern!r} is no regular expression ({error}).") from None
    names: list[str | None] = []
    for key in keys:
        path = PurePosixPath(key)
        match = compiled.fullmatch(path.stem)
        group = (match[1] if compiled.groups else "") if match else None
        names.append(None if match is None else f"{path.parent}/{group or ''}")
    return names


def join_groups(keys: Sequence[str], groups: Sequence[int], names: Sequence[str | None]) -> list[int]:
    """Put groups together that share a name.

    Args:
        keys: unique image keys.
        groups: one group number an image.
        names: one name an image, None where it has none.

    Returns:
        One group number an image, numbered from 0 in the order of the groups' smallest keys.
    """
    if not keys:
        return []
    numbers = {name: position for position, name in enumerate(dict.fromkeys(n for n in names if n is not None))}
    base = max(groups) + 1
    edges = [(group, base + numbers[name]) for group, name in zip(groups, names, strict=True) if name is not None]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (rows, columns)), shape=(base + len(numbers),) * 2)
    component = connected_components(graph, directed=False)[1][list(groups)]
    rank: dict[int, int] = {}
    for position in sorted(range(len(keys)), key=keys.__getitem__):
        rank.setdefault(int(component[position]), len(rank))
    return [rank[int(number)] for number in component]


def fold_split(
    keys: Sequence[str],
    groups: Sequence[int],
    classes: Sequence[Collection[int]],
    *,
    folds: int,
    fold: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Divide images into k folds of whole groups, and give the split whose val side is one of them.

    Folds are taken one after the other, each by `splitting.split` from what is left, so that rare classes
    are spread and the same data and seed give the same folds whichever is asked for.

    Args:
        keys: unique image keys.
        groups: one group number an image; images of a group stay together.
        classes: the category ids in each image.
        folds: how many, at least 2.
        fold: which one is val, from 1.
        seed: decides among equally good places.

    Returns:
        As `splitting.split`.

    Raises:
        InputDataError: fewer groups than folds.
        ParameterError: fewer than 2 folds, or no fold of this number.
    """
    if folds < 2 or not 1 <= fold <= folds:
        raise ParameterError(f"split.fold is {fold} of {folds} folds; give 2 or more folds, and one of 1…{folds}.")
    count = len(set(groups))
    if count < folds:
        raise InputDataError(
            f"{folds} folds need as many groups of images that do not look alike, but there are {count}; "
            "ask for fewer folds."
        )
    members: dict[int, int] = defaultdict(int)
    for group in groups:
        members[group] += 1
    left = set(members)
    val: set[int] = set()
    for number in range(1, fold + 1):
        if number == folds:
            val = left
            break
        chosen = [position for position, group in enumerate(groups) if group in left]
        table = split(
            [keys[position] for position in chosen],
            [groups[position] for position in chosen],
            [classes[position] for position in chosen],
            val_fraction=1 / (folds - number + 1),
            seed=seed,
        )
        val = set(table.loc[table["split"] == VAL, "group"])
        # Enough groups must be left for the folds that follow.
        for group in sorted(val, key=lambda g: (members[g], g))[: max(0, folds - number - (len(left) - len(val)))]:
            val.discard(group)
        left -= val
    table = pd.DataFrame({"key": list(keys), "group": list(groups)}).sort_values("key", ignore_index=True)
    table["split"] = np.where(table["group"].isin(val), VAL, TRAIN)
    return table


def listed_split(path: Path | str, keys: Sequence[str], groups: Sequence[int]) -> pd.DataFrame:
    """Read a split of the user's.

    Args:
        path: CSV file with the columns ``key`` and ``split`` (train or val), and a row for each image; rows
            of other images are not used.
        keys: unique image keys.
        groups: one group number an image, for the audit.

    Returns:
        As `splitting.split`.

    Raises:
        InputDataError: the file is missing or no such table, lists an image twice or not at all, names
            another side, or leaves a side empty.
    """
    try:
        table = pd.read_csv(path, dtype="string", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputDataError(f"{path}: the list of the split cannot be read ({error}).") from None
    if missing := {"key", "split"} - set(table.columns):
        raise InputDataError(f"{path}: there is no column {sorted(missing)[0]!r}; it needs the columns key and split.")
    if (twice := table["key"].duplicated()).any():
        raise InputDataError(f"{path}: image {table.loc[twice, 'key'].iloc[0]!r} is listed twice.")
    if (other := ~table["split"].isin([TRAIN, VAL])).any():
        row = table[other].iloc[0]
        raise InputDataError(f"{path}: image {row['key']!r} has the side {row['split']!r}; give train or val.")
    side = dict(zip(table["key"], table["split"], strict=True))
    if unlisted := sorted(set(keys) - side.keys()):
        shown = ", ".join(unlisted[:_SHOWN]) + (", …" if len(unlisted) > _SHOWN else "")
        raise InputDataError(f"{path}: {len(unlisted)} image(s) are not listed: {shown}. Add a row for each.")
    found = pd.DataFrame({"key": list(keys), "group": list(groups)}).sort_values("key", ignore_index=True)
    found["split"] = [side[key] for key in found["key"]]
    for name in (TRAIN, VAL):
        if name not in set(found["split"]):
            raise InputDataError(f"{path}: no image is on the side {name}.")
    return found
