"""The fringe: what a COCO model sees of an annotated thing beyond the thing's own outline.

Such a model calls a wheel loader a truck, which becomes a leftover stuff class (`misc` by default). Its outline is
never quite the annotated one, so that a rim of `misc` would be learned around every thing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from construction_panoptic.annotations.stuff.label_maps import LabelMap
from construction_panoptic.annotations.taxonomy import LAST_COCO_THING, Taxonomy

Mask = NDArray[np.bool_]


class Fringe(NamedTuple):
    """What counts as fringe: pixels of leftover classes on no thing, within a distance in rows and columns of one."""

    leftover: Sequence[int]
    distance: int

    def pixels(self, labels: LabelMap, things: Mask) -> int:
        """Count them in uint8 [H, W] of stuff ids, with bool [H, W] of annotated things."""
        rest = np.zeros_like(things)
        for stuff_id in self.leftover:
            rest |= labels == stuff_id
        rest &= ~things
        if not (rest.any() and things.any()):
            return 0
        near = ndimage.maximum_filter(things.view(np.uint8), size=2 * self.distance + 1, mode="constant")
        return int(np.count_nonzero(near.view(bool) & rest))


def leftover_classes(taxonomy: Taxonomy) -> list[int]:
    """Return the stuff ids that COCO's *thing* categories become, ascending."""
    return sorted({stuff for coco, stuff in taxonomy.stuff_id_of_coco.items() if coco <= LAST_COCO_THING})


def explained_masks(masks: Mask, things: Mask, fraction: float) -> NDArray[np.bool_]:
    """Tell which masks annotated things explain, bool [K]: those of which more than a fraction (0…1) lies on things.

    ``masks`` are bool [K, h, w], at any resolution, ``things`` bool [H, W].
    """
    count, height, width = masks.shape
    if not things.any():
        return np.zeros(count, dtype=bool)
    share = np.asarray(Image.fromarray(things.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    covered = masks.reshape(count, height * width) @ share.ravel()
    explained: NDArray[np.bool_] = covered > fraction * masks.sum(axis=(1, 2))
    return explained


def without_explained_parts(labels: LabelMap, things: Mask, leftover: Sequence[int], fraction: float) -> LabelMap:
    """Make void what things, bool [H, W], explain, where nothing but a label map is known.

    That is each connected part of a leftover class, together with the unlabelled things that it touches, of which
    things cover more than the fraction (0…1).
    """
    cleaned, unlabelled = labels.copy(), things & (labels == 0)
    for stuff_id in leftover:
        of_class = labels == stuff_id
        if of_class.any():
            # Where predictions leave out what is annotated, the things stand for the part that is missing.
            cleaned[explained_parts(of_class | unlabelled, things, fraction)] = 0
    return cleaned


def explained_parts(region: Mask, things: Mask, fraction: float) -> Mask:
    """Find the (8-)connected parts of a region of which more than a fraction lies on things: bool [H, W]."""
    found = np.zeros_like(region)
    if not (region & things).any():
        return found
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    parts, count = ndimage.label(region[inside], structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    covered = np.bincount(parts[things[inside]], minlength=count + 1)
    explained = covered > fraction * areas
    explained[0] = False
    if explained.any():
        found[inside] = explained[parts]
    return found
