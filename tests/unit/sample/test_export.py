import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.stuff.labeller import ImageToLabel
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample import generate
from construction_panoptic.sample.backdrops import COCO_CATEGORIES
from construction_panoptic.sample.export import MIXED_FOLDER, make_scene, noise_bank, plan_frames
from construction_panoptic.sample.shapes import DRAWINGS


def exports(sample: dict[str, bytes]) -> dict[str, Any]:
    """Folder → content of its annotation file."""
    return {
        name.split("/")[1]: json.loads(content)
        for name, content in sample.items()
        if name.startswith("construction/") and name.endswith(".json")
    }


def panoptic(sample: dict[str, bytes]) -> Any:
    return json.loads(sample["stuff_predictions/panoptic.json"])


@pytest.fixture(scope="module")
def taxonomy(repository: Path) -> Taxonomy:
    return Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))


def test_folders_and_counts(sample: dict[str, bytes], settings: SampleSettings) -> None:
    found = exports(sample)
    assert set(found) == {*settings.classes, settings.rare_class, MIXED_FOLDER}
    assert f"construction/{MIXED_FOLDER}/annotations/instances_default.json" in sample
    images = {folder: len(content["images"]) for folder, content in found.items()}
    assert sum(images.values()) == settings.images
    assert images[str(settings.rare_class)] == settings.rare_images
    own = [images[name] for name in settings.classes]
    assert min(own) >= settings.single_class_images // len(settings.classes)
    for folder, content in found.items():
        names = {f"construction/{folder}/images/{image['file_name']}" for image in content["images"]}
        assert names == {name for name in sample if name.startswith(f"construction/{folder}/") and name.endswith("jpg")}


def test_annotation_files_have_the_layout_of_cvat(sample: dict[str, bytes]) -> None:
    for folder, content in exports(sample).items():
        assert list(content) == ["licenses", "info", "categories", "images", "annotations"]
        assert [category["id"] for category in content["categories"]] == list(range(1, len(content["categories"]) + 1))
        if folder != MIXED_FOLDER:
            assert content["categories"] == [{"id": 1, "name": folder, "supercategory": ""}]
        assert [image["id"] for image in content["images"]] == list(range(1, len(content["images"]) + 1))
        assert [one["id"] for one in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert {one["image_id"] for one in content["annotations"]} == {image["id"] for image in content["images"]}
        for image in content["images"]:
            with Image.open(io.BytesIO(sample[f"construction/{folder}/images/{image['file_name']}"])) as picture:
                assert picture.size == (image["width"], image["height"])
                assert picture.mode == "RGB"


def test_polygons_lie_in_the_image_and_agree_with_area_and_bbox(sample: dict[str, bytes]) -> None:
    for content in exports(sample).values():
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for one in content["annotations"]:
            height, width = sizes[one["image_id"]]
            assert one["iscrowd"] == 0
            assert isinstance(one["attributes"]["occluded"], bool)
            assert all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in one["segmentation"])
            corners = np.concatenate([np.reshape(ring, (-1, 2)) for ring in one["segmentation"]])
            assert corners.min() >= 0
            assert corners[:, 0].max() <= width
            assert corners[:, 1].max() <= height
            left, top, wide, high = one["bbox"]
            assert (left, top) == tuple(corners.min(0))
            assert (left + wide, top + high) == pytest.approx(tuple(corners.max(0)), abs=0.01)
            codes = coco_mask.frPyObjects(one["segmentation"], height, width)
            pixels = int(coco_mask.area(coco_mask.merge(codes)))
            assert one["area"] == pytest.approx(pixels, rel=0.12, abs=8)


def test_painting_the_polygons_in_order_gives_what_is_seen(sample: dict[str, bytes], settings: SampleSettings) -> None:
    content = exports(sample)[MIXED_FOLDER]
    names = {category["id"]: category["name"] for category in content["categories"]}
    noise = noise_bank(settings)
    overlaps = []
    for image, frame in zip(content["images"], plan_frames(settings)[MIXED_FOLDER], strict=True):
        scene = make_scene(frame, settings, noise)
        owner = np.zeros(scene.labels.shape, int)
        annotations = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        assert [names[one["category_id"]] for one in annotations] == [one.name for one in scene.instances]
        for number, one in enumerate(annotations, 1):
            codes = coco_mask.frPyObjects(one["segmentation"], *scene.labels.shape)
            owner[coco_mask.decode(coco_mask.merge(codes)).astype(bool)] = number
        for number, instance in enumerate(scene.instances, 1):
            seen, painted = instance.visible > 0.5, owner == number
            overlaps.append((seen & painted).sum() / (seen | painted).sum())
    assert np.mean(overlaps) > 0.93
    assert min(overlaps) > 0.75


def test_mixed_export_shows_several_classes_together(sample: dict[str, bytes]) -> None:
    content = exports(sample)[MIXED_FOLDER]
    classes: dict[int, set[int]] = {}
    for one in content["annotations"]:
        classes.setdefault(one["image_id"], set()).add(one["category_id"])
    assert sum(len(found) > 1 for found in classes.values()) > len(classes) / 2
    assert sum(one["attributes"]["occluded"] for one in content["annotations"]) > 5


def test_stuff_predictions_cover_every_image(sample: dict[str, bytes]) -> None:
    content = panoptic(sample)
    keys = {
        f"{folder}/{image['file_name']}": (image["height"], image["width"])
        for folder, export in exports(sample).items()
        for image in export["images"]
    }
    assert {image["file_name"]: (image["height"], image["width"]) for image in content["images"]} == keys
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    assert sorted(sizes) == sorted(one["image_id"] for one in content["annotations"])
    used = Counter[int]()
    for one in content["annotations"]:
        id_map = decode_id_map(sample[f"stuff_predictions/panoptic/{one['file_name']}"])
        assert id_map.shape == sizes[one["image_id"]]
        values, counts = np.unique(id_map[id_map > 0], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
            segment["id"]: segment["area"] for segment in one["segments_info"]
        }
        used.update({segment["category_id"] for segment in one["segments_info"]})
    assert len(used) >= 10
    assert set(used) <= {category["id"] for category in content["categories"]}


def test_names_are_those_of_the_taxonomy(taxonomy: Taxonomy) -> None:
    assert all(taxonomy.thing_id(name) is not None for name in DRAWINGS)
    known = {entry.coco_name: entry.coco_id for entry in taxonomy.coco_to_stuff}
    assert {name: number for name, (number, _) in COCO_CATEGORIES.items()} == {
        name: known[name] for name in COCO_CATEGORIES
    }


def test_the_readers_take_everything(
    sample: dict[str, bytes], sample_folder: Path, settings: SampleSettings, taxonomy: Taxonomy
) -> None:
    read = read_exports(
        sample_folder / "construction", taxonomy, ConversionSettings(on_error="fail", execution=ONE_PROCESS)
    )
    assert len(read.images) == settings.images
    assert len(read.annotations) == sum(len(content["annotations"]) for content in exports(sample).values())
    assert len(read.rejected) == 0
    assert set(read.annotations.frame(["category"])["category"]) == {*settings.classes, settings.rare_class}
    stuff = ReadyStuff(sample_folder / "stuff_predictions", taxonomy)
    seen: set[int] = set()
    for row in read.images.head(40).itertuples():
        labels = stuff.read(
            ImageToLabel(str(row.key), "", (int(str(row.height)), int(str(row.width))), found=stuff.find(str(row.key)))
        )
        assert labels is not None
        seen |= set(np.unique(labels).tolist())
    assert {taxonomy.names[number] for number in seen - {0}} >= {"sky", "ground", "misc", "building", "plant"}


def test_only_planned_near_duplicates_look_alike(sample: dict[str, bytes], settings: SampleSettings) -> None:
    frames = {
        f"construction/{folder}/images/{folder}_{number:04d}.jpg": frame
        for folder, folder_frames in plan_frames(settings).items()
        for number, frame in enumerate(folder_frames, 1)
    }
    names = sorted(frames)
    hashes = np.array(
        [imagehash.phash(Image.open(io.BytesIO(sample[name])), hash_size=16).hash.ravel() for name in names]
    )
    distances = (hashes[:, None] != hashes[None]).sum(-1)
    first, second = np.triu_indices(len(names), 1)
    scenes = np.array([frames[name].scene for name in names])
    same = scenes[first] == scenes[second]
    assert same.sum() >= settings.near_duplicates
    assert distances[first, second][same].max() <= 20
    assert distances[first, second][~same].min() > 60


def test_the_seed_decides_every_byte() -> None:
    settings = SampleSettings(images=24, rare_images=1, mixed_fraction=0.2, near_duplicate_fraction=0.1, seed=11)
    first, second = list(generate(settings)), list(generate(settings))
    assert first == second
    other = dict(generate(settings.model_copy(update={"seed": 12})))
    same = [name for name, content in first if other.get(name) == content]
    assert not [name for name in same if name.endswith((".jpg", "coco.json"))]


def test_files_come_one_by_one_with_the_summary_last() -> None:
    files = generate(SampleSettings())
    name, content = next(files)
    assert name == "construction/aac_blocks/images/aac_blocks_0001.jpg"
    assert content[:3] == b"\xff\xd8\xff"
    assert next(files)[0] == "stuff_predictions/panoptic/aac_blocks__aac_blocks_0001.png"


def test_larger_images_without_a_rare_class_or_a_mixed_export() -> None:
    settings = SampleSettings(
        images=20, height=160, widths=(208,), classes=("water_tank",), rare_class=None, mixed_fraction=0
    )
    files = dict(generate(settings))
    assert set(exports(files)) == {"water_tank"}
    assert all(image["height"] == 160 for image in exports(files)["water_tank"]["images"])
