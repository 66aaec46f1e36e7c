"""The door for stuff labellers: from an image, and the things annotated in it, to a map of stuff ids."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class StuffLabeller(Protocol):
    """One way of labelling stuff.

    Attributes:
        identity: names everything that the labels depend on; an equal identity means equal labels.
    """

    identity: str

    def label(
        self, images: Sequence[NDArray[np.uint8]], things: Sequence[NDArray[np.bool_] | None]
    ) -> list[NDArray[np.uint8]]:
        """Label a batch.

        Args:
            images: uint8 [H, W, 3] each, RGB, upright.
            things: bool [H, W] each, True on annotated things; None where there are none.

        Returns:
            uint8 [H, W] stuff ids for each image, 0 = none.
        """
        ...
