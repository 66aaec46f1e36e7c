"""Sheets of several pictures: examples beside their ground truth and prediction, and mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation.classes import Color
from construction_panoptic.visualisation.labels import load_font, shorten_text

Picture = NDArray[np.uint8]

MARGIN = 16
PAPER: Color = (255, 255, 255)
INK: Color = (25, 25, 25)
PALE: Color = (110, 110, 110)
# Longest side of the overlays that go on a sheet: drawn larger, their names would shrink with them.
CELL_SIDE = 780
# A cell is at most this much higher than wide, so that one tall image does not fill the sheet.
TALLEST = 1.25


@dataclass(frozen=True)
class Example:
    """One row of a sheet.

    Attributes:
        image: uint8 [H, W, 3].
        title: the file name.
        truth: the ground-truth overlay, uint8 [h, w, 3], or None where there is none.
        prediction: the predicted overlay, or None.
        quality: the PQ of this image, 0 to 1.
        legend: (class name, colour) of the classes in the row; see ``classes.legend_entries``.
        errors: the overlay of what is wrong, or None.
    """

    image: Picture
    title: str
    truth: Picture | None = None
    prediction: Picture | None = None
    quality: float | None = None
    legend: Sequence[tuple[str, Color]] = ()
    errors: Picture | None = None


def example_sheet(examples: Sequence[Example], *, width: int = 2400) -> Image.Image:
    """Set images, ground truths and predictions side by side, a row each.

    Above each row stand its file name, the PQ of the image if known, and the colours of its classes. A column
    that no example fills is left out.

    Args:
        examples: the rows.
        width: width of the sheet in pixels.

    Returns:
        An RGB picture; its height follows from the images.

    Raises:
        InputDataError: there is no example.
    """
    if not examples:
        raise InputDataError("a sheet needs at least one example")
    columns = [
        (heading, pictures)
        for heading, pictures in (
            ("Image", [example.image for example in examples]),
            ("Ground truth", [example.truth for example in examples]),
            ("Prediction", [example.prediction for example in examples]),
            ("Errors", [example.errors for example in examples]),
        )
        if any(picture is not None for picture in pictures)
    ]
    cell = (width - MARGIN * (len(columns) + 1)) // len(columns)
    heading_size, text_size = max(16, width // 75), max(12, width // 110)
    fitted = [[_fitted(picture, cell) for picture in pictures] for _, pictures in columns]
    rows = list(zip(*fitted, strict=True))
    captions = [_caption(example, width - 2 * MARGIN, text_size) for example in examples]
    heights = [max(picture.height for picture in row if picture is not None) for row in rows]
    total = 2 * MARGIN + round(heading_size * 1.4) + sum(caption.height for caption in captions)
    sheet = Image.new("RGB", (width, total + sum(heights) + MARGIN * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + k * (cell + MARGIN) for k in range(len(columns))]
    for left, (heading, _) in zip(lefts, columns, strict=True):
        draw.text((left + cell / 2, MARGIN), heading, INK, load_font(heading_size), anchor="ma")
    top = MARGIN + round(heading_size * 1.4)
    for row, caption, height in zip(rows, captions, heights, strict=True):
        sheet.paste(caption, (MARGIN, top))
        top += caption.height
        for left, picture in zip(lefts, row, strict=True):
            if picture is None:
                box = (left, top, left + cell - 1, top + height - 1)
                draw.rectangle(box, outline=PALE)
                centre = (left + cell / 2, top + height / 2)
                draw.text(centre, "none", PALE, load_font(text_size, bold=False), anchor="mm")
            else:
                sheet.paste(picture, (left + (cell - picture.width) // 2, top))
        top += height + MARGIN
    return sheet


def mosaic(pictures: Sequence[Picture], titles: Sequence[str], *, columns: int = 3, width: int = 2400) -> Image.Image:
    """Set pictures in a grid, each under its title.

    Args:
        pictures: uint8 [h, w, 3] each, of any sizes.
        titles: one a picture; a title that is too long loses its middle.
        columns: pictures a row.
        width: width of the mosaic in pixels.

    Returns:
        An RGB picture.

    Raises:
        InputDataError: there is no picture, or the numbers of pictures and titles differ.
    """
    if not pictures or len(pictures) != len(titles):
        raise InputDataError(f"a mosaic needs pictures, and as many titles: {len(pictures)} and {len(titles)}")
    columns = max(1, min(columns, len(pictures)))
    cell = (width - MARGIN * (columns + 1)) // columns
    size = max(12, width // 110)
    title_height = round(size * 1.7)
    fitted = [_resized(picture, cell) for picture in pictures]
    starts = range(0, len(fitted), columns)
    heights = [max(picture.height for picture in fitted[start : start + columns]) for start in starts]
    total = MARGIN + sum(height + title_height + MARGIN for height in heights)
    sheet = Image.new("RGB", (width, total), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = load_font(size, bold=False)
    top = MARGIN
    for start, height in zip(starts, heights, strict=True):
        for k, picture in enumerate(fitted[start : start + columns]):
            left = MARGIN + k * (cell + MARGIN)
            title = shorten_text(titles[start + k], font.getlength, cell)
            draw.text((left + cell / 2, top + title_height / 2), title, INK, font, anchor="mm")
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + title_height))
        top += title_height + height + MARGIN
    return sheet


def _fitted(picture: Picture | None, width: int) -> Image.Image | None:
    return None if picture is None else _resized(picture, width)


def _resized(picture: Picture, width: int) -> Image.Image:
    """Scale to ``width``, or less where the picture would be too high."""
    scale = min(width / picture.shape[1], width * TALLEST / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _caption(example: Example, width: int, size: int) -> Image.Image:
    """Draw title, PQ and legend; the legend takes as many lines as it needs."""
    bold, plain = load_font(size), load_font(size, bold=False)
    title = example.title if example.quality is None else f"{example.title}   PQ {100 * example.quality:.1f}"
    title = shorten_text(title, bold.getlength, width)
    line, chip = round(size * 1.6), round(size * 0.8)
    places: list[tuple[int, int]] = []
    left, row = round(bold.getlength(title)) + 2 * size, 0
    for name, _ in example.legend:
        needed = chip + size // 3 + round(plain.getlength(name))
        if left + needed > width:
            left, row = 0, row + 1
        places.append((left, row))
        left += needed + size
    caption = Image.new("RGB", (width, line * (row + 1)), PAPER)
    draw = ImageDraw.Draw(caption)
    draw.text((0, line / 2), title, INK, bold, anchor="lm")
    for (name, color), (x, line_number) in zip(example.legend, places, strict=True):
        middle = line * (line_number + 0.5)
        draw.rectangle((x, middle - chip / 2, x + chip, middle + chip / 2), fill=color, outline=PALE)
        draw.text((x + chip + size // 3, middle), name, INK, plain, anchor="lm")
    return caption
