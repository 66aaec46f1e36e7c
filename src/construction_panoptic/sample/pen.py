"""A pen for thing drawings in units of the thing's own width."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from construction_panoptic.sample.textures import Colour, shade

Point = tuple[float, float]


class Pen:
    """Draws on a transparent image; x runs from 0 to 1 over the thing's width, y downwards in the same unit.

    Args:
        image: RGBA image to draw on.
        scale: pixels of ``image`` for one unit.
        origin: pixel position of the unit's (0, 0).
        flip: mirror the drawing left to right.
    """

    def __init__(self, image: Image.Image, scale: float, origin: Point, flip: bool = False) -> None:
        self._draw = ImageDraw.Draw(image)
        self._scale = scale
        self._origin = origin
        self._flip = flip

    def _at(self, x: float, y: float) -> Point:
        if self._flip:
            x = 1 - x
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

    def barrel(
        self, outline: Sequence[tuple[float, float, float]], colour: Colour, *, upright: bool = True, strips: int = 14
    ) -> None:
        """Fill a round body with light from one side.

        Args:
            outline: (position along the axis, centre across it, half-width across it), in drawing order.
            colour: colour of the lit side.
            upright: the axis is vertical; otherwise it is horizontal and the light comes from above.
            strips: number of shading steps.
        """
        edges = np.linspace(-1, 1, strips + 1)
        for low, high in pairwise(edges):
            middle = (low + high) / 2
            light = 1.12 - 0.45 * (middle + 0.35) ** 2 / 1.8 - 0.18 * middle
            one = [(along, centre + low * half) for along, centre, half in outline]
            # A little overlap hides the seams between strips.
            other = [(along, centre + min(1.0, high + 0.02) * half) for along, centre, half in reversed(outline)]
            points = one + other
            self.polygon([(v, u) if upright else (u, v) for u, v in points], shade(colour, light))

    def wheel(self, x: float, y: float, radius: float, rim: Colour, tyre: Colour = (38, 37, 40)) -> None:
        """A tyre with a rim and a hub."""
        self.ellipse(x, y, radius, radius, tyre)
        self.ellipse(x, y, radius * 0.55, radius * 0.55, rim)
        self.ellipse(x, y, radius * 0.2, radius * 0.2, shade(rim, 0.55))
