"""Reports as single HTML files: templates (jinja2) that escape every text, and pictures inside."""

import base64
import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from construction_panoptic.files import git_state
from construction_panoptic.visualisation.charts import percent_text
from construction_panoptic.visualisation.overlays import Picture, display_name

PICTURE_SIDE = 420  # px, the longest side of a picture in a row
SHEET_WIDTH = 1600  # px, of one that takes the width of the page

ReportPicture = tuple[Picture, str]
"""A picture of a report, uint8 [h, w, 3], and what stands below it."""


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates; the page is ASCII and needs nothing outside itself."""
    page = _ENVIRONMENT.get_template(template).render(**values)
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii") + "\n"


def about(*, run: str = "", model: str = "", images: str, digest: str) -> dict[str, str]:
    """Say what a report is about, when it was made and with which commit; what is not known is left out."""
    commit, changed = git_state(Path.cwd()) or ("", False)
    said = {
        "run": run,
        "model": model,
        "data set": images,
        "digest": digest[:8],
        "commit": commit[:8] + (", with changes that are not committed" if changed else ""),
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    }
    return {name: value for name, value in said.items() if value}


def about_model(model: str, run: str, panoptic_val: Mapping[str, Any]) -> dict[str, str]:
    """Say the same of a report on a model and the validation set, COCO panoptic, on which it was measured."""
    images, digest = f"{len(panoptic_val['images']):,} validation images", panoptic_val["info"]["split_sha256"]
    return about(run=run, model=model, images=images, digest=digest)


def _jpeg(picture: Picture | Image.Image, wide: bool = False) -> dict[str, Any]:
    image = Image.fromarray(np.asarray(picture))
    image.thumbnail((SHEET_WIDTH, image.height) if wide else (PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=75)
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return {"width": image.width, "height": image.height, "content": content}


_ENVIRONMENT = Environment(
    loader=PackageLoader("construction_panoptic.visualisation"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"jpeg": _jpeg, "percent": percent_text, "words": display_name}
_ENVIRONMENT.filters["signed"] = lambda fraction: f"{100 * fraction:+.1f}"
