"""The annotated things of each image, out of the tables."""

import pandas as pd

from construction_panoptic.annotations.stuff.fringe import OutlinedThings
from construction_panoptic.annotations.tables import RowsOfKeys, Table


class AnnotatedThings:
    """Where the annotated things of each image are.

    Args:
        images: the table of accepted images, see `reading.Exports`.
        annotations: the table of accepted annotations, see `reading.Exports`.
    """

    def __init__(self, images: pd.DataFrame, annotations: Table) -> None:
        sizes = zip(images["height"].tolist(), images["width"].tolist(), strict=True)
        self._size = dict(zip(images["key"], sizes, strict=True))
        self._rows = RowsOfKeys(annotations, ["is_thing", "rle"])

    def of(self, key: str) -> OutlinedThings:
        """Return the things of an image; it is quick for images in the order of their keys.

        Raises:
            KeyError: there is no such image.
        """
        return OutlinedThings(self._size[key], tuple(row["rle"] for row in self._rows.of(key) if row["is_thing"]))
