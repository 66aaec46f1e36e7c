"""Sheets of several pictures: examples beside their ground truth and prediction, and mosaics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation.labels import load_font, shorten_text
from construction_panoptic.visualisation.overlays import Color, Picture

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
    """One row of a sheet: pictures of an image, uint8 [h, w, 3] each, by what they are.

    ``quality`` is PQ, 0 to 1, if known; ``legend`` has (name, colour), see `overlays.legend_entries`.
    """

    title: str
    pictures: Mapping[str, Picture]
    quality: float | None = None
    legend: Sequence[tuple[str, Color]] = ()


def example_sheet(examples: Sequence[Example], *, width: int = 2400) -> Image.Image:
    """Set examples, which have the same kinds of pictures, below each other on a sheet, ``width`` pixels wide.

    Above each row stand its title, the PQ of the image if known, and the legend. Raises an `InputDataError` if there is
    no example.
    """
    if not examples:
        raise InputDataError("a sheet needs at least one example")
    headings = list(examples[0].pictures)
    cell = (width - MARGIN * (len(headings) + 1)) // len(headings)
    parts = [_titles(headings, cell, load_font(max(16, width // 75)))]
    for example in examples:
        parts.append(_caption(example, width - 2 * MARGIN, max(12, width // 110)))
        parts.append(_row(list(example.pictures.values()), cell))
    return _stacked(parts, width)


def mosaic(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    captions: Sequence[str] = (),
    *,
    columns: int = 3,
    width: int = 2400,
) -> Image.Image:
    """Set pictures, uint8 [h, w, 3] each, in a grid ``width`` pixels wide, between their titles and captions.

    Raises an `InputDataError` if there is no picture.
    """
    if not pictures:
        raise InputDataError("a mosaic needs at least one picture")
    columns = min(columns, len(pictures))
    cell = (width - MARGIN * (columns + 1)) // columns
    font = load_font(max(12, width // 110), bold=False)
    parts = []
    for start in range(0, len(pictures), columns):
        row = slice(start, start + columns)
        parts += [_titles(titles[row], cell, font), _row(pictures[row], cell)]
        parts += [_titles(captions[row], cell, font)] if captions else []
    return _stacked(parts, width)


def _stacked(parts: Sequence[Image.Image], width: int) -> Image.Image:
    """Set titles and rows of pictures under each other; a margin follows each row."""
    sheet = Image.new("RGB", (width, MARGIN + sum(part.height for part in parts)), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height
    return sheet


def _titles(texts: Sequence[str], cell: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    height = round(font.size * 1.7)
    line = Image.new("RGB", (len(texts) * (cell + MARGIN) - MARGIN, height), PAPER)
    draw = ImageDraw.Draw(line)
    for k, text in enumerate(texts):
        shown = shorten_text(text, font.getlength, cell)
        draw.text((k * (cell + MARGIN) + cell / 2, height / 2), shown, INK, font, anchor="mm")
    return line


def _row(pictures: Sequence[Picture], cell: int) -> Image.Image:
    fitted = [_resized(picture, cell) for picture in pictures]
    height = max(picture.height for picture in fitted)
    row = Image.new("RGB", (len(pictures) * (cell + MARGIN) - MARGIN, height + MARGIN), PAPER)
    for k, picture in enumerate(fitted):
        row.paste(picture, (k * (cell + MARGIN) + (cell - picture.width) // 2, 0))
    return row


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
