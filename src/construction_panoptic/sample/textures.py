"""Colours and noise that the drawings share."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Colour = tuple[int, int, int]
FloatArray = NDArray[np.float32]


def shade(colour: Colour, factor: float) -> Colour:
    """Multiply a colour by ``factor`` (1 leaves it, above 1 lightens) and clip to 0…255."""
    r, g, b = (int(min(255, max(0, round(c * factor)))) for c in colour)
    return r, g, b


def vary(rng: np.random.Generator, colour: Colour, amount: float = 10) -> Colour:
    """Jitter a colour: one normal step for all channels and a smaller one for each (0…255 units)."""
    steps = rng.normal(0, amount) + rng.normal(0, amount / 2, 3)
    r, g, b = (int(v) for v in np.clip(np.array(colour) + steps, 0, 255))
    return r, g, b


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], amount: float = 8) -> Colour:
    """One of ``colours``, jittered."""
    return vary(rng, colours[int(rng.integers(len(colours)))], amount)


class NoiseBank:
    """Smooth noise tiles with mean 0 and standard deviation 1, made once and cropped many times.

    Args:
        rng: source of the tiles.
        side: tile side in pixels, the largest crop.
        scales: grain sizes in pixels, the standard deviation of the Gaussian that smooths white noise.
    """

    def __init__(
        self, rng: np.random.Generator, side: int = 256, scales: tuple[float, ...] = (0, 0.8, 2, 5, 12)
    ) -> None:
        self._side = side
        self._tiles: dict[float, FloatArray] = {}
        for scale in scales:
            tile = rng.standard_normal((side, side))
            if scale:
                tile = ndimage.gaussian_filter(tile, scale, mode="wrap")
            tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)
            # The tile repeats without a seam; two of them make every crop a plain slice.
            self._tiles[scale] = np.tile(tile, (2, 2))

    def crop(self, rng: np.random.Generator, shape: tuple[int, int], scale: float) -> FloatArray:
        """A random [H, W] float32 view of the tile whose grain size is nearest to ``scale`` pixels."""
        tile = self._tiles[min(self._tiles, key=lambda known: abs(known - scale))]
        top, left = rng.integers(self._side, size=2)
        crop = tile[top : top + shape[0], left : left + shape[1]]
        return crop[:, ::-1] if rng.random() < 0.5 else crop
