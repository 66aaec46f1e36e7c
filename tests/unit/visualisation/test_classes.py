import pytest

from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation import Classes, ClassTable, display_name, legend_entries


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
    with pytest.raises(InputDataError, match="lacks color, isthing"):
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
