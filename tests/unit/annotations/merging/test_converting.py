from collections.abc import Callable
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.taxonomy import Taxonomy


def test_images_come_one_at_a_time(
    make_export: Callable[..., Path],
    make_document: Callable[..., Any],
    site_taxonomy: Taxonomy,
    tmp_path: Path,
) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(3)]
    make_export("yard", make_document(images=images, annotations=[]), photos=("0.jpg", "1.jpg", "2.jpg"))
    exports = read_exports(tmp_path / "raw", site_taxonomy)
    asked: list[str] = []
    converted: Any = merge_images(exports.images, exports.annotations, asked.append, site_taxonomy)
    assert asked == []
    assert next(converted).record.key == "yard/0.jpg"
    assert asked == ["yard/0.jpg"]
    assert [image.record.key for image in converted] == ["yard/1.jpg", "yard/2.jpg"]
