"""Small CVAT exports, made as CVAT writes them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.merging.masks import segmentation_rle, union_mask
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.conversion import ConversionSettings

SIZE = (40, 30)
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


@pytest.fixture(scope="session")
def site_taxonomy() -> Taxonomy:
    """Two stuff and three thing classes."""
    return Taxonomy.from_dict(
        {
            "stuff": [
                {"id": 1, "name": "sky", "color": [10, 20, 30]},
                {"id": 2, "name": "ground", "color": [90, 60, 10]},
            ],
            "things": [
                {"id": 7, "name": "tower_crane", "color": [1, 2, 3]},
                {"id": 8, "name": "pump", "color": [4, 5, 6]},
                {"id": 9, "name": "pipes", "color": [7, 8, 9]},
            ],
            "coco_to_stuff": [{"coco_id": 187, "coco_name": "sky-other-merged", "stuff": "sky"}],
        }
    )


def write_photo(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco(**changes: Any) -> dict[str, Any]:
    """One image and one annotation of the class `pump`."""
    document: dict[str, Any] = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": ""},
        "categories": [{"id": 1, "name": "pump", "supercategory": ""}],
        "images": [{"id": 1, "file_name": "a.jpg", "width": SIZE[0], "height": SIZE[1]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": SQUARE,
                "area": 100.0,
                "bbox": [5.0, 5.0, 10.0, 10.0],
                "iscrowd": 0,
                "attributes": {"occluded": False},
            }
        ],
    }
    return document | changes


@pytest.fixture
def make_export(tmp_path: Path) -> Callable[..., Path]:
    """Write one export into ``tmp_path/raw`` and return its folder, or its archive.

    Arguments: name, document (dict or the file's bytes), json_name, photos (under images/), archive, prefix.
    """

    def make(
        name: str = "yard",
        document: dict[str, Any] | bytes | None = None,
        *,
        json_name: str = "coco.json",
        photos: tuple[str, ...] = ("a.jpg",),
        archive: bool = False,
        prefix: str = "",
    ) -> Path:
        folder = (tmp_path / "staging" if archive else tmp_path / "raw") / name
        content = document if isinstance(document, bytes) else json.dumps(document or coco()).encode()
        (folder / json_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / json_name).write_bytes(content)
        for seed, photo in enumerate(photos):
            write_photo(folder / "images" / photo, seed)
        if not archive:
            return folder
        target = tmp_path / "raw" / f"{name}.zip"
        target.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(target, "w") as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, prefix + path.relative_to(folder).as_posix())
        return target

    return make


@pytest.fixture(scope="session")
def mask_of() -> Callable[..., np.ndarray]:
    """Draw a COCO segmentation, or the counts of a code as text, as bool [height, width]."""

    def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
        if isinstance(segmentation, str):
            segmentation = {"size": [height, width], "counts": segmentation}
        return union_mask([segmentation_rle(segmentation, height, width)["counts"]], height, width)

    return draw


@pytest.fixture
def make_document() -> Callable[..., dict[str, Any]]:
    return coco


@pytest.fixture
def make_photo() -> Callable[..., None]:
    return write_photo


@pytest.fixture
def read(tmp_path: Path, site_taxonomy: Taxonomy) -> Callable[..., Exports]:
    """Read what `make_export` wrote."""

    def read(**options: str) -> Exports:
        settings = ConversionSettings(execution=ONE_PROCESS, **options)  # type: ignore[arg-type]
        return read_exports(tmp_path / "raw", site_taxonomy, settings)

    return read
