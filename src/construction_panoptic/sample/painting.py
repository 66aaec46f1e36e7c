"""What the drawings share: colours, noise, and a pen in units of a thing's own width."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Colour = tuple[int, int, int]
FloatArray = NDArray[np.float32]
Point = tuple[float, float]


def shade(colour: Colour, factor: float) -> Colour:
    """Multiply a colour by a factor and clip to 0…255."""
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
    """Smooth noise tiles of ``side`` pixels, the largest crop, with mean 0 and standard deviation 1."""

    def __init__(self, rng: np.random.Generator, side: int = 256) -> None:
        self._side = side
        self._tiles: dict[float, FloatArray] = {}
        # Grain in pixels: the standard deviation of the Gaussian that smooths white noise.
        for scale in (0, 0.8, 2, 5, 12):
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


class Pen:
    """Draws on an RGBA image: x runs from 0 to 1 over the thing's width, y downwards in the same unit.

    A unit has ``scale`` pixels, and (0, 0) is at the pixel ``origin``; ``flip`` mirrors left to right.
    """

    def __init__(self, image: Image.Image, scale: float, origin: Point, flip: bool = False) -> None:
        self._draw = ImageDraw.Draw(image)
        self._scale, self._origin, self._flip = scale, origin, flip

    def _at(self, x: float, y: float) -> Point:
        x = 1 - x if self._flip else x
        return self._origin[0] + x * self._scale, self._origin[1] + y * self._scale

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon through ``points``."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill=(*colour, 255))

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill an axis-parallel rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        """Fill an ellipse around (x, y)."""
        cx, cy = self._at(x, y)
        rx, ry = radius_x * self._scale, radius_y * self._scale
        self._draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=(*colour, 255))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round joints, ``width`` in units."""
        pixels = max(1, round(width * self._scale))
        self._draw.line([self._at(x, y) for x, y in points], fill=(*colour, 255), width=pixels, joint="curve")

    def barrel(self, outline: Sequence[tuple[float, float, float]], colour: Colour, *, upright: bool = True) -> None:
        """Fill a round body with light from one side, or from above if it is not upright.

        ``outline`` gives position along the axis, centre and half-width across it, in drawing order.
        """
        for low, high in pairwise(np.linspace(-1, 1, 15)):
            middle = (low + high) / 2
            light = 1.12 - 0.45 * (middle + 0.35) ** 2 / 1.8 - 0.18 * middle
            one = [(along, centre + low * half) for along, centre, half in outline]
            # A little overlap hides the seams between strips.
            other = [(along, centre + min(1.0, high + 0.02) * half) for along, centre, half in reversed(outline)]
            self.polygon([(v, u) if upright else (u, v) for u, v in one + other], shade(colour, light))

    def wheel(self, x: float, y: float, radius: float, rim: Colour) -> None:
        """Draw a tyre with a rim and a hub."""
        self.ellipse(x, y, radius, radius, (38, 37, 40))
        self.ellipse(x, y, radius * 0.55, radius * 0.55, rim)
        self.ellipse(x, y, radius * 0.2, radius * 0.2, shade(rim, 0.55))
