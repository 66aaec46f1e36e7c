import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations.coco_entries import EntryError
from construction_panoptic.annotations.cvat import read_exports
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.masks import MaskError
from construction_panoptic.annotations.merging import merge_images
from construction_panoptic.annotations.parallel import Workers, worker_count
from construction_panoptic.annotations.taxonomy import Taxonomy


def test_auto_is_at_least_one() -> None:
    assert worker_count("auto") >= 1
    assert worker_count(3) == 3


@pytest.mark.parametrize("kind", [ImageError, EntryError, MaskError])
def test_errors_come_back_from_other_processes(kind: type[ImageError]) -> None:
    again = pickle.loads(pickle.dumps(kind("too_large", "a.jpg: too large")))
    assert (type(again), again.reason, str(again)) == (kind, "too_large", "a.jpg: too large")


def test_order_errors_and_the_number_in_flight() -> None:
    taken = []

    def items() -> Iterator[str]:
        for number in range(200):
            taken.append(number)
            yield "x" if number == 100 else str(number)

    with Workers(2) as workers:
        results = workers.map(partial(int, base=10), items())
        assert next(results) == 0
        assert len(taken) <= 2 * 2 * 4
        assert [next(results) for _ in range(99)] == list(range(1, 100))
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)
        assert len(taken) < 130


def test_processes_give_the_same_as_one(
    make_export: Callable[..., Path], make_document: Callable[..., dict[str, Any]], site_taxonomy: Taxonomy
) -> None:
    photos = tuple(f"{number}.jpg" for number in range(9))
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(11)]
    [annotation] = make_document()["annotations"]
    annotations = [annotation | {"id": n, "image_id": n % 11} for n in range(30)]
    document = make_document(images=images, annotations=annotations)
    make_export("pump", document, photos=photos, archive=True)
    raw = make_export("pipes", document, photos=photos).parent
    one = read_exports(raw, site_taxonomy)
    two = read_exports(raw, site_taxonomy, workers=2)
    for name in ("images", "annotations", "rejected", "inputs"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    assert len(one.rejected) > 0

    def stuff(key: str) -> np.ndarray:
        return np.full((30, 40), 1 + ("pump" in key), dtype=np.uint8)

    serial = list(merge_images(one.images, one.annotations, stuff, site_taxonomy))
    parallel = list(merge_images(one.images, one.annotations, stuff, site_taxonomy, workers=2))
    assert len(serial) == 18
    assert serial == parallel
    damaged = Path(str(one.images["location"].iloc[0]))
    if damaged.is_file():
        damaged.write_bytes(b"no image")
        with pytest.raises(ImageError):
            list(merge_images(one.images, one.annotations, stuff, site_taxonomy, workers=2))
