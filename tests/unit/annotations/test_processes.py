"""The conversion gives the same in any number of processes, whoever runs them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.records import UnusableError
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import Execution
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.parallel.workers import Engine


@pytest.mark.parametrize("kind", [ImageError, UnusableError])
def test_errors_come_back_from_other_processes(kind: type[UnusableError]) -> None:
    again = pickle.loads(pickle.dumps(kind("too_large", "a.jpg: too large")))
    assert (type(again), again.reason, str(again)) == (kind, "too_large", "a.jpg: too large")


@pytest.fixture
def raw(make_export: Callable[..., Path], make_document: Callable[..., dict[str, Any]]) -> Path:
    """Two exports, one an archive, of nine images each, and two that are missing."""
    photos = tuple(f"{number}.jpg" for number in range(9))
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(11)]
    [annotation] = make_document()["annotations"]
    annotations = [annotation | {"id": n, "image_id": n % 11} for n in range(30)]
    document = make_document(images=images, annotations=annotations)
    make_export("pump", document, photos=photos, archive=True)
    return make_export("pipes", document, photos=photos).parent


def stuff(key: str) -> bytes:
    return encode_labels(np.full((30, 40), 1 + ("pump" in key), dtype=np.uint8))


def check_same_as_serial(raw: Path, taxonomy: Taxonomy, engine: Engine) -> None:
    one = read_exports(raw, taxonomy)
    two = read_exports(raw, taxonomy, ConversionSettings(execution=Execution(workers=2, engine=engine)))
    for name in ("images", "rejected", "repaired"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    pd.testing.assert_frame_equal(one.annotations.frame(), two.annotations.frame())
    assert len(one.rejected) > 0

    serial = list(merge_images(one.images, one.annotations, stuff, taxonomy))
    parallel = list(merge_images(one.images, one.annotations, stuff, taxonomy, workers=2, engine=engine))
    assert len(serial) == 18
    assert serial == parallel
    damaged = Path(next(location for location in one.images["location"] if "::" not in location))
    damaged.write_bytes(b"no image")
    with pytest.raises(ImageError):
        list(merge_images(one.images, one.annotations, stuff, taxonomy, workers=2, engine=engine))


def test_processes_give_the_same_as_one(raw: Path, site_taxonomy: Taxonomy) -> None:
    check_same_as_serial(raw, site_taxonomy, "local")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_same_as_one_process(raw: Path, site_taxonomy: Taxonomy) -> None:
    check_same_as_serial(raw, site_taxonomy, "ray")
