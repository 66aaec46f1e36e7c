"""What the pictures need to know of a taxonomy: names, colours and which classes are things."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """A plain table of classes, for label sets other than the project's taxonomy."""

    names: Mapping[int, str]
    colors: Mapping[int, Color]
    is_thing: Mapping[int, bool]

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping[str, Any]]) -> "ClassTable":
        """Read the ``categories`` of a COCO panoptic JSON (``id``, ``name``, ``isthing``, ``color``).

        Raises:
            InputDataError: a category lacks one of the four.
        """
        names, colors, is_thing = {}, {}, {}
        for category in categories:
            missing = {"id", "name", "isthing", "color"} - category.keys()
            if missing:
                raise InputDataError(f"category {dict(category)} lacks {', '.join(sorted(missing))}")
            category_id = int(category["id"])
            names[category_id] = str(category["name"])
            red, green, blue = category["color"]
            colors[category_id] = (int(red), int(green), int(blue))
            is_thing[category_id] = bool(category["isthing"])
        return cls(names, colors, is_thing)


Classes = ClassTable | Taxonomy
"""Names, colours (RGB, 0 to 255) and kinds by category id."""


def display_name(name: str) -> str:
    """Give a class name as people read it: ``wheel_loader`` is shown as ``wheel loader``."""
    return name.replace("_", " ").strip() or name


def legend_entries(segments: Iterable[Mapping[str, Any]], classes: Classes) -> list[tuple[str, Color]]:
    """List the classes of ``segments`` once each, things first, as (shown name, colour)."""
    ids = {int(segment["category_id"]) for segment in segments} & classes.names.keys()
    order = sorted(ids, key=lambda i: (not classes.is_thing[i], classes.names[i]))
    return [(display_name(classes.names[i]), classes.colors[i]) for i in order]
