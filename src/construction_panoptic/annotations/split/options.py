"""Other ways to divide the images: k folds, and a list of the user's."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from construction_panoptic.annotations.split.splitting import TRAIN, VAL, check_sides, groups_of_keys, split
from construction_panoptic.errors import InputDataError

logger = logging.getLogger(__name__)

_SHOWN = 5


def fold_split(
    keys: Sequence[str],
    groups: Sequence[int],
    classes: Sequence[Collection[int]],
    *,
    folds: int,
    fold: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Divide images into k folds of whole groups, and give the split whose val side is one of them, counted from 1.

    Folds are taken one after the other, each by `splitting.split` from what is left, so that rare classes are spread
    and the same data and seed give the same folds whichever is asked for. Raises `InputDataError`: fewer groups than
    folds.
    """
    members = Counter(groups)
    if len(members) < folds:
        raise InputDataError(
            f"{folds} folds need as many groups of images that do not look alike, but there are {len(members)}; "
            "ask for fewer folds."
        )
    left, val = set(members), set[int]()
    for to_come in range(folds - 1, folds - fold - 1, -1):
        if to_come == 0:
            val = left
            break
        chosen = [image for image in zip(keys, groups, classes, strict=True) if image[1] in left]
        table = split(*zip(*chosen, strict=True), val_fraction=1 / (to_come + 1), seed=seed)
        val = set(table.loc[table["split"] == VAL, "group"])
        # Enough groups must be left for the folds that follow.
        for group in sorted(val, key=lambda g: (members[g], g))[: max(0, to_come - (len(left) - len(val)))]:
            val.discard(group)
        left -= val
    table = groups_of_keys(keys, groups)
    table["split"] = np.where(table["group"].isin(val), VAL, TRAIN)
    return table


def listed_split(path: Path | str, keys: Sequence[str], groups: Sequence[int]) -> pd.DataFrame:
    """Read a split of the user's, a CSV file with the columns ``key`` and ``split`` (train or val).

    It has a row for each image; rows of other images are logged. Gives what `splitting.split` does. Raises
    `InputDataError`: the file is missing or no such table, lists an image twice or not at all, names another side, or
    leaves a side empty.
    """
    try:
        # Rows may end in a comma: without `index_col`, keys would become an index, without `usecols`, pandas warns.
        columns: Any = {"index_col": False, "usecols": lambda name: name in ("key", "split")}
        table = pd.read_csv(path, dtype="string", keep_default_na=False, **columns)
    except (OSError, ValueError) as error:
        raise InputDataError(f"{path}: the list of the split cannot be read ({error}).") from None
    if missing := {"key", "split"} - set(table.columns):
        raise InputDataError(f"{path}: there is no column {sorted(missing)[0]!r}; it needs the columns key and split.")
    check_sides(table, str(path))
    side = dict(zip(table["key"], table["split"], strict=True))
    if unlisted := set(keys) - side.keys():
        raise InputDataError(
            f"{path}: {len(unlisted)} image(s) are not listed: {_shown(unlisted)}. Add a row for each."
        )
    if unknown := side.keys() - set(keys):
        logger.warning("%s: %d listed image(s) are not in the data set: %s", path, len(unknown), _shown(unknown))
    found = groups_of_keys(keys, groups)
    found["split"] = [side[key] for key in found["key"]]
    for name in (TRAIN, VAL):
        if name not in set(found["split"]):
            raise InputDataError(f"{path}: no image is on the side {name}.")
    return found


def _shown(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
