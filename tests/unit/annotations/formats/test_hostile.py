"""Input that was made to do harm: refused with a message, read in bounded memory, nothing outside touched."""

import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.annotations.rejected import check_conservation
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

pytestmark = pytest.mark.medium

Make = Callable[..., Any]


def rejected(exports: Exports, source: str = "yard") -> list[str]:
    return exports.rejected.loc[exports.rejected["source"] == source, "reason"].tolist()


@pytest.mark.parametrize("member", ["coco.json", "images/a.jpg"])
def test_a_zip_bomb_is_not_unpacked(
    make_export: Make, make_document: Make, site_taxonomy: Taxonomy, member: str
) -> None:
    raw = make_export("bay").parent
    members = {"coco.json": json.dumps(make_document()).encode(), "images/a.jpg": b"x"}
    members[member] = b"[" * (200 << 20)
    with zipfile.ZipFile(raw / "yard.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    del members
    assert (raw / "yard.zip").stat().st_size < 2 << 20
    tracemalloc.start()
    exports = read_exports(raw, site_taxonomy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
    reasons = rejected(exports)
    assert reasons == (["unreadable_json"] if member == "coco.json" else ["too_large", "too_large"])
    assert "200 times" in exports.rejected["detail"].iloc[0]


@pytest.mark.parametrize("depth", [200, 900, 100_000])
@pytest.mark.parametrize("where", ["segmentation", "attributes", "bbox"])
def test_deep_json_is_read_or_refused(
    make_export: Make, make_document: Make, site_taxonomy: Taxonomy, depth: int, where: str
) -> None:
    raw = make_export("bay").parent
    document = make_document()
    document["annotations"][0][where] = "DEEP"
    deep = "[" * depth + "]" * depth
    make_export("yard", json.dumps(document).replace('"DEEP"', deep).encode())
    exports = read_exports(raw, site_taxonomy)
    accepted = exports.annotations.frame()["source"].eq("yard").sum()
    if depth == 200:
        assert (accepted, rejected(exports)) == ((0, ["bad_polygon"]) if where == "segmentation" else (1, []))
    else:
        assert accepted + len(rejected(exports)) == 1


@pytest.mark.parametrize("depth", [900, *range(950, 995)])
def test_deep_extras_of_a_code_are_left_out(
    make_export: Make, make_document: Make, site_taxonomy: Taxonomy, mask_of: Make, depth: int
) -> None:
    raw = make_export("bay").parent
    document = make_document()
    document["annotations"][0]["segmentation"] = {"size": [30, 40], "counts": [600, 600], "extra": "DEEP"}
    text = json.dumps(document).replace('"DEEP"', '{"a":' * depth + "1" + "}" * depth)
    make_export("yard", text.encode())
    exports = read_exports(raw, site_taxonomy)
    codes = exports.annotations.frame().loc[lambda rows: rows["source"].eq("yard"), "rle"].tolist()
    assert [mask_of(code, 30, 40).sum() for code in codes] == [600] or rejected(exports) == ["unreadable_json"]


@pytest.mark.parametrize("link", ["coco.json", "images/a.jpg", "images"])
def test_links_that_lead_out_are_not_followed(
    make_export: Make, site_taxonomy: Taxonomy, tmp_path: Path, link: str
) -> None:
    raw = make_export("bay").parent
    folder = make_export("yard")
    outside = tmp_path / "outside" / link
    outside.parent.mkdir(parents=True)
    (folder / link).rename(outside)
    (folder / link).symlink_to(outside)
    exports = read_exports(raw, site_taxonomy)
    assert exports.images["source"].tolist() == ["bay"]
    assert "leads out" in " ".join(exports.rejected["detail"])


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a\0.png"])
def test_ready_predictions_stay_in_their_folder(tmp_path: Path, site_taxonomy: Taxonomy, name: str) -> None:
    (tmp_path / "panoptic").mkdir()
    (tmp_path / "secret.png").write_bytes(encode_id_map(np.ones((3, 4), np.uint32)))
    segments = [{"id": 1, "category_id": 1}]
    content = {
        "images": [{"id": 1, "file_name": "yard/a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": name, "segments_info": segments}],
        "categories": [{"id": 1, "name": "sky"}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(InputDataError, match="does not stay inside"):
        ReadyStuff(tmp_path, site_taxonomy)


def test_a_png_of_three_gigapixels_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(InputDataError, match="cannot be read"):
        decode_id_map(png)


anything = st.sampled_from([None, True, 1, 1.0, 1.5, 2**70, float("nan"), "", "1", "../a.jpg", [], [1], {}, {"a": 1}])
place = st.tuples(
    st.sampled_from(["images", "categories", "annotations"]),
    st.integers(0, 1),
    st.sampled_from(["id", "image_id", "category_id", "file_name", "width", "name", "segmentation", "iscrowd", "area"]),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(["licenses", "info", "categories", "images", "annotations"]),
    changes=st.lists(st.tuples(place, anything), max_size=4),
)
def test_the_order_of_the_lists_changes_nothing(
    make_export: Make,
    make_document: Make,
    site_taxonomy: Taxonomy,
    order: list[str],
    changes: list[tuple[tuple[str, int, str], Any]],
) -> None:
    document = make_document()
    for name in ("images", "categories", "annotations"):
        document[name].append(document[name][0] | {"id": 2})
    for (name, index, key), value in changes:
        document[name][index][key] = value
    make_export("bay")

    def read(names: list[str]) -> Exports:
        content = json.dumps({name: document[name] for name in names}).encode()
        return read_exports(make_export("yard", content).parent, site_taxonomy)

    usual, other = read(list(document)), read(order)
    pd.testing.assert_frame_equal(other.annotations.frame(), usual.annotations.frame())
    for table in ("images", "rejected", "repaired"):
        pd.testing.assert_frame_equal(getattr(other, table), getattr(usual, table))


number = (
    st.integers(-60, 90) | st.floats(-60, 90) | st.sampled_from([float("nan"), float("inf"), 1e300, 2**70, None, "3"])
)
ring = st.lists(number, max_size=12)
segmentation = (
    st.lists(ring, max_size=3)
    | st.fixed_dictionaries({"size": st.just([30, 40]), "counts": st.lists(st.integers(-3, 1300), max_size=6)})
    | st.fixed_dictionaries({"size": st.just([30, 40]), "counts": st.text("0123456789XYZ`abcopq~\n", max_size=20)})
    | st.none()
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(segmentation, st.sampled_from([0, 1])), min_size=1, max_size=6))
def test_no_outline_is_lost_or_stops_the_conversion(
    make_export: Make, make_document: Make, site_taxonomy: Taxonomy, outlines: list[tuple[Any, int]]
) -> None:
    [usual] = make_document()["annotations"]
    annotations = [
        usual | {"id": position, "segmentation": outline, "iscrowd": crowd}
        for position, (outline, crowd) in enumerate(outlines)
    ]
    raw = make_export("yard", make_document(annotations=annotations)).parent
    before = sorted(os.walk(raw.parent))
    exports = read_exports(raw, site_taxonomy)
    converted: Any = list(merge_images(exports.images, exports.annotations, lambda key: None, site_taxonomy))
    check_conservation(exports.annotations, exports.images, [image.record for image in converted])
    assert len(exports.annotations) + len(exports.rejected) == len(outlines)
    for image in converted:
        segments = image.record.segments
        areas = np.bincount(decode_id_map(image.png).ravel(), minlength=len(segments) + 1)
        assert {segment.id: segment.area for segment in segments} == dict(enumerate(areas[1:].tolist(), 1))
    assert sorted(os.walk(raw.parent)) == before
