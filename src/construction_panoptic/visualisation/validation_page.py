"""The page of the validation images: all of them, to sort, filter and enlarge."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from construction_panoptic.visualisation.charts import LOSS_COLORS, percent_text
from construction_panoptic.visualisation.classes import ClassTable, display_name
from construction_panoptic.visualisation.evaluation_report import example_pictures
from construction_panoptic.visualisation.examples import DRAWN_ERRORS
from construction_panoptic.visualisation.page import render
from construction_panoptic.visualisation.sheets import Example

MOST_IMAGES = 200  # about 50 kB each
THUMBNAIL_SIDE = 320  # px


def validation_page(
    about: Mapping[str, str],
    truth: Mapping[str, Any],
    segments: pd.DataFrame,
    examples: Mapping[int, float | None],
    drawn: Iterable[Example],
) -> str:
    """Set the page, in ASCII with its pictures inside.

    Args:
        about: see `page.about`.
        truth: COCO panoptic file.
        segments: see `segments.match_segments`.
        examples: PQ (0…1 or None) of the images that are shown, by their ids.
        drawn: the same images, in the same order, with what is wrong; each is drawn when its turn has come.
    """
    shown = segments[segments["image_id"].isin(list(examples))]
    names = ClassTable.from_categories(truth["categories"]).names
    occurring = {category: display_name(names[category]) for category in shown["category_id"].unique()}
    return render(
        "validation_images.html.j2",
        title="Validation images",
        about=about,
        colors={display_name(name): color for name, color in LOSS_COLORS.items()},
        classes=sorted(occurring.items(), key=lambda item: item[1]),
        kinds=list(DRAWN_ERRORS),
        left_out=len(truth["images"]) - len(examples),
        cards=_cards(dict(iter(shown.groupby("image_id"))), examples, drawn),
    )


def _cards(
    matches: Mapping[Any, pd.DataFrame], examples: Mapping[int, float | None], drawn: Iterable[Example]
) -> Iterator[dict[str, Any]]:
    for (image_id, quality), example in zip(examples.items(), drawn, strict=True):
        rows = matches.get(image_id, pd.DataFrame(columns=["category_id", "outcome", "side"]))
        counts = {
            display_name(kind): int(((rows["outcome"] == kind) & (rows["side"] == side)).sum())
            for kind, side in DRAWN_ERRORS.items()
        }
        yield {
            "name": example.title,
            "sorted_by": -1 if quality is None else quality,
            "quality": percent_text(quality),
            "errors": ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no error",
            # A class and what became of it, such as 3:missed; the filters look for parts of this text.
            "found": " ".join(sorted(set(rows["category_id"].astype(str) + ":" + rows["outcome"]))),
            "pictures": example_pictures(example)[1:],
        }
