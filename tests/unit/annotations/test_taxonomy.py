import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from construction_panoptic.annotations.taxonomy import Taxonomy, normalise_name
from construction_panoptic.errors import InputDataError

VALID: dict[str, Any] = {
    "stuff": [{"id": 1, "name": "sky", "color": [0, 0, 1]}, {"id": 2, "name": "wall", "color": [0, 0, 2]}],
    "things": [{"id": 5, "name": "tower_crane", "color": [0, 0, 5]}],
    "coco_to_stuff": [
        {"coco_id": 187, "coco_name": "sky-other-merged", "stuff": "sky"},
        {"coco_id": 1, "coco_name": "wall", "stuff": "sky"},
    ],
}


def test_default_taxonomy_of_the_project(repository: Path) -> None:
    data = json.loads((repository / "conf" / "base" / "taxonomy.json").read_text())
    taxonomy = Taxonomy.from_dict(data)
    assert list(taxonomy.names) == list(range(1, 65))
    assert [class_id for class_id, thing in taxonomy.is_thing.items() if thing] == list(range(17, 65))
    assert len(taxonomy.stuff_id_of_coco) == 133
    assert set(taxonomy.stuff_id_of_coco.values()) <= set(range(1, 17))
    assert taxonomy.thing_id("wheel_loader") == 63
    assert taxonomy.stuff_id_of_name("wall-tile") == taxonomy.stuff_id("wall") == 15


def test_lookups() -> None:
    taxonomy = Taxonomy.from_dict(VALID)
    assert taxonomy.thing_id("Tower  Crane") == taxonomy.thing_id("tower-crane") == 5
    assert taxonomy.thing_id("sky") is None
    assert taxonomy.stuff_id("sky-other-merged") is None
    assert taxonomy.stuff_id_of_name("sky-other-merged") == 1
    assert taxonomy.stuff_id_of_name("wall") == 2, "the project's own class goes before COCO's"
    assert taxonomy.stuff_id_of_name("sea") is None
    assert taxonomy.stuff_id_of_coco == {187: 1, 1: 1}
    assert taxonomy.colors[5] == (0, 0, 5)
    assert taxonomy.coco_categories()[-1] == {
        "id": 5,
        "name": "tower_crane",
        "supercategory": "thing",
        "isthing": 1,
        "color": [0, 0, 5],
    }


def test_aliases_are_names_of_their_class() -> None:
    data = copy.deepcopy(VALID)
    data["things"][0]["aliases"] = ["Mobile crane", "crawler-crane"]
    data["stuff"][0]["aliases"] = ["clouds"]
    taxonomy = Taxonomy.from_dict(data)
    assert taxonomy.thing_id("mobile_crane") == taxonomy.thing_id("Crawler crane") == taxonomy.thing_id("tower_crane")
    assert taxonomy.stuff_id("Clouds") == 1
    assert taxonomy.names[5] == "tower_crane"
    data["stuff"][1]["aliases"] = ["mobile-crane"]
    with pytest.raises(InputDataError, match="'mobile_crane' is listed twice"):
        Taxonomy.from_dict(data)


def test_normalised_names() -> None:
    assert normalise_name("  Tower - Crane_") == "tower_crane"


def test_survives_copy_and_pickle() -> None:
    taxonomy = Taxonomy.from_dict(VALID)
    assert taxonomy.names
    assert copy.deepcopy(taxonomy) == taxonomy == pickle.loads(pickle.dumps(taxonomy))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("stuff", 1, "id"), 1, "the id 1 is listed twice"),
        (("stuff", 1, "id"), 0, r"stuff\[1\].id \(wall\)"),
        (("stuff", 1, "id"), 256, r"stuff\[1\].id \(wall\)"),
        (("stuff", 1, "id"), "2", r"stuff\[1\].id \(wall\)"),
        (("stuff", 1, "id"), True, r"stuff\[1\].id \(wall\)"),
        (("things", 0, "name"), "SKY", "the name 'sky' is listed twice"),
        (("things", 0, "name"), " ", r"things\[0\].name"),
        (("things", 0, "color"), [1, 2], r"things\[0\].color"),
        (("things", 0, "color"), [1, 2, 256], r"things\[0\].color\[2\] \(tower_crane\)"),
        (("things", 0, "extra"), 1, r"things\[0\].extra \(tower_crane\)"),
        (("things",), [], "things"),
        (("stuff",), None, "stuff"),
        (("coco_to_stuff", 0, "stuff"), "sea", "'sky-other-merged' is mapped to 'sea'"),
        (("coco_to_stuff", 0, "coco_id"), 1, "the coco_id 1 is listed twice"),
        (("coco_to_stuff", 0, "coco_name"), "wall", "the coco_name 'wall' is listed twice"),
    ],
)
def test_errors_name_the_entry(place: tuple[Any, ...], value: Any, message: str) -> None:
    data = copy.deepcopy(VALID)
    entry: Any = data
    for part in place[:-1]:
        entry = entry[part]
    entry[place[-1]] = value
    with pytest.raises(InputDataError, match=rf"^taxonomy: .*{message}"):
        Taxonomy.from_dict(data)


def test_something_else_than_an_object() -> None:
    with pytest.raises(InputDataError, match=r"taxonomy: expected an object"):
        Taxonomy.from_dict([])  # type: ignore[arg-type]
