"""Sheets of several pictures: examples beside their ground truth and prediction, and mosaics."""

from collections.abc import Sequence
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
    """One row of a sheet: an image, uint8 [H, W, 3], its overlays, uint8 [h, w, 3], and its PQ, 0 to 1.

    ``legend`` has (class name, colour) of the classes in the row; see ``overlays.legend_entries``.
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
    that no example fills is left out. ``width`` is that of the sheet in pixels.

    Raises:
        InputDataError: there is no example.
    """
    if not examples:
        raise InputDataError("a sheet needs at least one example")
    columns: dict[str, list[Picture | None]] = {
        "Image": [example.image for example in examples],
        "Ground truth": [example.truth for example in examples],
        "Prediction": [example.prediction for example in examples],
        "Errors": [example.errors for example in examples],
    }
    shown = {heading: pictures for heading, pictures in columns.items() if any(p is not None for p in pictures)}
    cell = (width - MARGIN * (len(shown) + 1)) // len(shown)
    parts = [_titles(list(shown), cell, load_font(max(16, width // 75)))]
    for example, pictures in zip(examples, zip(*shown.values(), strict=True), strict=True):
        caption = _caption(example, width - 2 * MARGIN, max(12, width // 110))
        parts += [caption, _row(pictures, cell)]
    return _stacked(parts, width)


def mosaic(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    captions: Sequence[str] = (),
    *,
    columns: int = 3,
    width: int = 2400,
) -> Image.Image:
    """Set pictures, uint8 [h, w, 3] each, in a grid ``width`` pixels wide, each under its title.

    Below it comes its caption, where there are any.

    Raises:
        InputDataError: there is no picture, or the numbers of pictures and titles differ.
    """
    if not pictures or len(pictures) != len(titles):
        raise InputDataError(f"a mosaic needs pictures, and as many titles: {len(pictures)} and {len(titles)}")
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


def _row(pictures: Sequence[Picture | None], cell: int) -> Image.Image:
    fitted = {k: _resized(picture, cell) for k, picture in enumerate(pictures) if picture is not None}
    height = max(picture.height for picture in fitted.values())
    row = Image.new("RGB", (len(pictures) * (cell + MARGIN) - MARGIN, height + MARGIN), PAPER)
    draw = ImageDraw.Draw(row)
    for k in range(len(pictures)):
        left = k * (cell + MARGIN)
        if k in fitted:
            row.paste(fitted[k], (left + (cell - fitted[k].width) // 2, 0))
        else:
            draw.rectangle((left, 0, left + cell - 1, height - 1), outline=PALE)
            draw.text((left + cell / 2, height / 2), "none", PALE, load_font(20, bold=False), anchor="mm")
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
