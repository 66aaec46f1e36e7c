"""Pages and pictures, and what kedro-viz shows of them and of folders of pictures."""

import base64
import colorsys
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kedro_datasets._typing import HTMLPreview, ImagePreview, PlotlyPreview
from kedro_datasets.pandas import CSVDataset
from kedro_datasets.pillow import ImageDataset
from kedro_datasets.text import TextDataset
from PIL import Image, ImageOps

from construction_panoptic.visualisation import charts, interactive

PREVIEW_WIDTH, PREVIEW_HEIGHT = 1200, 1600  # px; of a longer picture the upper part is shown
PREVIEW_PICTURES = 12
PREVIEW_CELL = 240  # px
GOLDEN = 0.618034  # multiples of it are spread evenly over the circle of hues


class HTMLDataset(TextDataset):
    """An HTML page."""

    def preview(self) -> HTMLPreview:
        """Give the page itself; kedro-viz takes it for Markdown too, in which underscores have a meaning."""
        return HTMLPreview(self.load().replace("_", "&#95;"))


class PictureDataset(ImageDataset):
    """A PIL image."""

    def preview(self) -> ImagePreview:
        """Give the picture, or its upper part, as base64 PNG."""
        return picture_preview(self.load())


class ChartedTableDataset(CSVDataset):
    """A table of which Kedro-Viz shows a chart: ``chart`` is the name of a function in `visualisation.charts`."""

    def __init__(self, *, chart: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._chart = chart

    def preview(self) -> PlotlyPreview:
        """Draw the chart."""
        figure = interactive.draw(getattr(charts, self._chart)(self.load()))
        return PlotlyPreview(json.loads(figure.to_json()))


def picture_preview(picture: Image.Image) -> ImagePreview:
    """Encode a picture as base64 PNG, at most 1200 px wide and then cut at 1600 px of height."""
    picture = picture.convert("RGB")
    picture.thumbnail((PREVIEW_WIDTH, picture.height))
    picture = picture.crop((0, 0, picture.width, min(picture.height, PREVIEW_HEIGHT)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return ImagePreview(base64.b64encode(buffer.getvalue()).decode())


def image_grid(paths: Sequence[Path], *, labels: bool = False) -> ImagePreview:
    """Set up to twelve pictures, evenly chosen among ``paths``, four in a row.

    With ``labels`` pixels are ids (8-bit, or 24-bit as in COCO panoptic), each shown in a colour of its own.
    """
    chosen = paths[:: max(1, len(paths) // PREVIEW_PICTURES)][:PREVIEW_PICTURES]
    rows = max(1, -(-len(chosen) // 4))
    sheet = Image.new("RGB", (4 * PREVIEW_CELL, rows * PREVIEW_CELL), "white")
    side = PREVIEW_CELL - 6
    for number, path in enumerate(chosen):
        with Image.open(path) as file:
            picture = _coloured(file) if labels else file.convert("RGB")
        cell = ImageOps.contain(picture, (side, side), Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC)
        sheet.paste(cell, (number % 4 * PREVIEW_CELL + 3, number // 4 * PREVIEW_CELL + 3))
    return picture_preview(sheet)


def _coloured(picture: Image.Image) -> Image.Image:
    """Give each id a colour; 0 is black."""
    pixels = np.asarray(picture if picture.mode == "RGB" else picture.convert("L"), dtype=np.int64)
    ids, inverse = np.unique(pixels @ [1, 256, 65536] if pixels.ndim == 3 else pixels, return_inverse=True)
    colors = [colorsys.hsv_to_rgb(identity * GOLDEN % 1, 0.55, 0.95) if identity else (0, 0, 0) for identity in ids]
    return Image.fromarray((255 * np.array(colors)).astype(np.uint8)[inverse.reshape(pixels.shape[:2])])
