"""The fringe: what a COCO model sees of an annotated thing beyond the thing's own outline.

A model that was trained on COCO calls a wheel loader a truck, and the truck becomes a leftover stuff class
(`misc` by default). Its outline is never quite the annotated one, so that a rim of `misc` would be learned
around every thing. A COCO segment that annotated things explain is therefore not used.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from construction_panoptic.annotations.merging.masks import union_mask
from construction_panoptic.annotations.taxonomy import LAST_COCO_THING, Taxonomy

Mask = NDArray[np.bool_]


class StuffOfImage(NamedTuple):
    """The stuff of one image, and how much of a leftover class lies around its things.

    Attributes:
        key: the image key.
        labels: uint8 [H, W] of the project's stuff ids, 0 = none, or the file that `stuff.encode_labels` makes of it;
            None where nothing is known.
        fringe_before: pixels of a leftover class close to a thing, had all segments been used.
        fringe_after: the same in ``labels``.
        digest: of all that it was made from; "" where that is not known.
    """

    key: str
    labels: NDArray[np.uint8] | bytes | None
    fringe_before: int = 0
    fringe_after: int = 0
    digest: str = ""


class OutlinedThings(NamedTuple):
    """The annotated things of one image.

    Attributes:
        size: height and width of the image, in pixels.
        codes: the counts of their masks as compressed COCO run-length codes.
    """

    size: tuple[int, int]
    codes: tuple[str, ...]

    def mask(self) -> Mask:
        """Draw the things: bool [H, W], True where any of them is."""
        return union_mask((code.encode() for code in self.codes), *self.size)


def leftover_classes(taxonomy: Taxonomy) -> list[int]:
    """Return the stuff ids that COCO's *thing* categories become, ascending."""
    return sorted({stuff for coco, stuff in taxonomy.stuff_id_of_coco.items() if coco <= LAST_COCO_THING})


def explained_parts(region: Mask, things: Mask, share: float) -> Mask:
    """Find the connected parts of a region that annotated things explain.

    Args:
        region: bool [H, W], such as a segment.
        things: bool [H, W], True on annotated things.
        share: a part is explained if more than this share of it lies on things, 0…1.

    Returns:
        bool [H, W], the pixels of the explained parts; neighbours are the eight around a pixel.
    """
    found = np.zeros_like(region)
    if not (region & things).any():
        return found
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    parts, count = ndimage.label(region[inside], structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    covered = np.bincount(parts[things[inside]], minlength=count + 1)
    explained = covered > share * areas
    explained[0] = False
    if explained.any():
        found[inside] = explained[parts]
    return found


def fringe_pixels(labels: NDArray[np.uint8], things: Mask, leftover: list[int], distance: int) -> int:
    """Count the pixels of leftover classes around things.

    Args:
        labels: uint8 [H, W] of stuff ids.
        things: bool [H, W], True on annotated things.
        leftover: stuff ids, see `leftover_classes`.
        distance: how far from a thing a pixel may be, in rows and in columns, pixels.

    Returns:
        Pixels that are of a leftover class, on no thing, and within ``distance`` of one.
    """
    rest = np.logical_or.reduce([labels == stuff_id for stuff_id in leftover] or [np.zeros_like(things)]) & ~things
    if not (rest.any() and things.any()):
        return 0
    near = ndimage.maximum_filter(things.view(np.uint8), size=2 * distance + 1, mode="constant")
    return int(np.count_nonzero(near.view(bool) & rest))
