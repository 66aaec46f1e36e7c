import json
from pathlib import Path

import numpy as np
import pytest

from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation.overlays import Classes, ClassTable, display_name, legend_entries


def test_coco_categories_become_a_table() -> None:
    table = ClassTable.from_categories(
        [
            {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60], "supercategory": "person"},
            {"id": 200, "name": "rug-merged", "isthing": 0, "color": [250, 141, 255]},
        ]
    )
    assert table.names == {1: "person", 200: "rug-merged"}
    assert table.colors == {1: (220, 20, 60), 200: (250, 141, 255)}
    assert table.is_thing == {1: True, 200: False}


def test_a_category_without_colour_is_refused() -> None:
    with pytest.raises(InputDataError, match="has no isthing, color"):
        ClassTable.from_categories([{"id": 1, "name": "person"}])


def test_the_taxonomy_serves_as_classes() -> None:
    data = {
        "stuff": [{"id": 1, "name": "sky", "color": [70, 130, 180]}],
        "things": [{"id": 2, "name": "wheel_loader", "color": [1, 2, 3]}],
        "coco_to_stuff": [],
    }
    classes: Classes = Taxonomy.from_dict(data)
    assert legend_entries([{"category_id": 2}], classes) == [("wheel loader", (1, 2, 3))]


def test_the_legend_has_each_class_once_things_first(classes: ClassTable) -> None:
    segments = [{"category_id": i} for i in (1, 4, 2, 3, 3, 1)]
    assert [name for name, _ in legend_entries(segments, classes)] == [
        "crane",
        "wheel loader",
        "ground",
        "sky",
    ]
    assert legend_entries([{"category_id": 99}], classes) == []


def test_display_name() -> None:
    assert display_name("fire_extinguishers") == "fire extinguishers"
    assert display_name("_") == "_"


# The classes that touch most often: in the sample and in photographs of construction sites.
TOUCHING = [
    ("sky", "plant"),
    ("floor", "wall"),
    ("ceiling", "wall"),
    ("ground", "dump_truck_tipper_truck"),
    ("ground", "wall"),
    ("wall", "fire_extinguishers"),
    ("sky", "building"),
    ("ground", "structural"),
    ("ground", "sky"),
    ("window", "wall"),
    ("ground", "building"),
    ("ground", "plant"),
]


def lab(color: tuple[int, int, int]) -> np.ndarray:
    """CIELAB of an sRGB colour."""
    channels = np.array(color) / 255
    linear = np.where(channels > 0.04045, ((channels + 0.055) / 1.055) ** 2.4, channels / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_classes_that_touch_are_far_apart_in_colour(repository: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    colors = {name: taxonomy.colors[i] for i, name in taxonomy.names.items()}
    for one, other in TOUCHING:
        assert np.linalg.norm(lab(colors[one]) - lab(colors[other])) >= 30, (one, other)
    red, green, blue = colors["plant"]
    assert green > 2 * max(red, blue)
