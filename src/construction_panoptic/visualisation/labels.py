"""Text on pictures: a bundled font, names broken into lines, and the best place for a name in a segment."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

# Side, in pixels, to which a segment's mask is reduced while a place is looked for.
SEARCH_SIDE = 256


@lru_cache(maxsize=64)
def load_font(size: int, *, bold: bool = True) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib, at ``size`` pixels, so that no system font is needed."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def label_size(width: int, height: int) -> int:
    """Font size, in pixels, that reads well on a picture of this size."""
    return round(float(np.clip(0.026 * (width * height) ** 0.5, 13, 40)))


def text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in pixels of ``text``, which may have several lines, with its outline."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font, **_style(font))
    return int(np.ceil(right - left)), int(np.ceil(bottom - top))


def _style(font: ImageFont.FreeTypeFont) -> dict[str, Any]:
    """How several lines stand, and the width of the outline around a letter."""
    outline, spacing = (max(1, round(font.size / part)) for part in (9, 8))
    return {"align": "center", "spacing": spacing, "stroke_width": outline}


def draw_text(draw: ImageDraw.ImageDraw, center: tuple[float, float], text: str, font: ImageFont.FreeTypeFont) -> None:
    """Write white, dark-outlined text around ``center`` (x, y): legible on every colour."""
    draw.multiline_text(center, text, "white", font, anchor="mm", stroke_fill=(20, 20, 20), **_style(font))


def line_breaks(text: str, lines: int = 3) -> list[str]:
    """Give ``text`` on one, two … at most ``lines`` lines, broken at the spaces that keep the longest line short."""
    words = text.split(" ")
    return [_balanced(words, count) for count in range(1, min(lines, len(words)) + 1)]


def _balanced(words: list[str], count: int) -> str:
    if count == 1:
        return " ".join(words)
    options = [" ".join(words[:i]) + "\n" + _balanced(words[i:], count - 1) for i in range(1, len(words) - count + 2)]
    return min(options, key=lambda text: max(map(len, text.split("\n"))))


def shorten_text(text: str, measure: Callable[[str], float], width: float) -> str:
    """Cut the middle out of ``text`` until ``measure`` gives ``width`` at most; what cannot be printed is a space."""
    text = "".join(character if character.isprintable() else " " for character in text)
    if measure(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if measure(shorter) <= width:
            return shorter
    return "…"


@dataclass(frozen=True)
class Label:
    """A text with its place: ``center`` (x, y) and font size in pixels."""

    text: str
    center: tuple[float, float]
    size: int

    def box(self) -> tuple[int, int, int, int]:
        """Give left, top, right and bottom in pixels."""
        width, height = text_size(self.text, load_font(self.size))
        left, top = self.center[0] - width / 2, self.center[1] - height / 2
        return int(np.floor(left)), int(np.floor(top)), int(np.ceil(left + width)), int(np.ceil(top + height))


@dataclass
class LabelPlacer:
    """Finds places for names, clear of what is ``taken``, bool [H, W]; they shrink from ``size`` to ``smallest``."""

    taken: NDArray[np.bool_]
    size: int
    smallest: int

    def place(self, mask: NDArray[np.bool_], offset: tuple[int, int], text: str) -> Label | None:
        """Find a place for ``text`` in a segment, bool [h, w] at the ``offset`` x, y, and keep it from later names.

        The name goes where the largest free ellipse of its shape fits into the segment. If that is too small, it is
        centred on the segment's thickest part and may reach over the border. None: there is no room for it.
        """
        label = self._inside(mask, offset, text) or self._across(mask, offset, text)
        if label is not None:
            left, top, right, bottom = label.box()
            self.taken[max(top, 0) : bottom, max(left, 0) : right] = True
        return label

    def _inside(self, mask: NDArray[np.bool_], offset: tuple[int, int], text: str) -> Label | None:
        x0, y0 = offset
        height, width = mask.shape
        free = mask & ~self.taken[y0 : y0 + height, x0 : x0 + width]
        best: Label | None = None
        for lines in line_breaks(text):
            text_width, text_height = text_size(lines, load_font(self.size))
            reach, (x, y) = thickest_point(free, text_width / text_height)
            # No box is wider than the ellipse whose shape it shares; one of 1/√2 its axes always fits.
            widest = min(self.size, int(self.size * 2 * reach / text_width))
            smallest = self.smallest if best is None else best.size + 1
            labels = (Label(lines, (x0 + x, y0 + y), size) for size in range(widest, smallest - 1, -1))
            best = next((label for label in labels if _covers(free, offset, label.box())), best)
        return best

    def _across(self, mask: NDArray[np.bool_], offset: tuple[int, int], text: str) -> Label | None:
        reach, (x, y) = thickest_point(mask, 1.0)
        if reach < self.smallest / 4:
            return None
        best = min(line_breaks(text), key=lambda lines: max(text_size(lines, load_font(self.smallest))))
        width, height = text_size(best, load_font(self.smallest))
        whole_height, whole_width = self.taken.shape
        if width > whole_width or height > whole_height:
            return None
        center_x = float(np.clip(offset[0] + x, width / 2, whole_width - width / 2))
        for shift in (0.0, -0.5, 0.5, -1.0, 1.0):
            center_y = float(np.clip(offset[1] + y + shift * height, height / 2, whole_height - height / 2))
            label = Label(best, (center_x, center_y), self.smallest)
            left, top, right, bottom = label.box()
            if not self.taken[max(top, 0) : bottom, max(left, 0) : right].any():
                return label
        return None


def thickest_point(mask: NDArray[np.bool_], aspect: float) -> tuple[float, tuple[float, float]]:
    """Find the largest ellipse of an aspect, width / height, inside a mask, bool [h, w], within its edges.

    Gives its horizontal half axis in pixels (0 for an empty mask), and its centre (x, y).
    """
    step = max(1, -(-max(mask.shape) // SEARCH_SIDE))
    padded = np.pad(mask[::step, ::step], 1)
    distance = np.asarray(distance_transform_edt(padded, sampling=(aspect, 1.0)))
    reach = float(distance.max())
    # Of the places that are about as good, take the middle one.
    rows, columns = np.nonzero(distance >= 0.97 * reach)
    middle = np.hypot(rows - rows.mean(), (columns - columns.mean()) / aspect).argmin()
    # Rounding to whole cells hides up to one step at the segment's edge.
    return max((reach - 1) * step + 0.5, 0.0), ((columns[middle] - 0.5) * step, (rows[middle] - 0.5) * step)


def _covers(mask: NDArray[np.bool_], offset: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
    """Whether all pixels of ``box`` (left, top, right, bottom in the picture) are in ``mask``."""
    left, top, right, bottom = box[0] - offset[0], box[1] - offset[1], box[2] - offset[0], box[3] - offset[1]
    if left < 0 or top < 0 or bottom > mask.shape[0] or right > mask.shape[1]:
        return False
    return bool(mask[top:bottom, left:right].all())
