import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.merging.merging import MergeTask, Overlap, merge_image, unique_stems
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.rejected import all_rejected, check_conservation
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

WIDTH, HEIGHT = 40, 30
Polygon = list[float]


def rectangle(x: float, y: float, width: float, height: float) -> Polygon:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def thing(number: int, *rings: Polygon, **changes: Any) -> dict[str, Any]:
    row = {"annotation_id": number, "category_id": 8, "iscrowd": 0, "order": number}
    segmentation = changes.pop("segmentation", list(rings))
    return row | {"rle": segmentation_rle(segmentation, HEIGHT, WIDTH)["counts"].decode()} | changes


@pytest.fixture
def photo(tmp_path: Path, make_photo: Callable[..., None]) -> dict[str, Any]:
    path = tmp_path / "a.jpg"
    make_photo(path)
    place = {"key": "yard/a.jpg", "source": "yard", "location": str(path), "phash": "ab"}
    return place | {"width": WIDTH, "height": HEIGHT}


@pytest.fixture
def merge(photo: dict[str, Any], site_taxonomy: Taxonomy) -> Callable[..., ConvertedImage]:
    def merge(
        rows: list[dict[str, Any]],
        stuff: NDArray[np.uint8] | None = None,
        overlap: Overlap = "last_on_top",
        stem: str = "yard__a",
        overlap_stuff: Overlap = "last_on_top",
    ) -> Any:
        png = None if stuff is None else encode_labels(stuff)
        return merge_image(site_taxonomy, overlap, overlap_stuff, MergeTask(photo, rows, png, stem))

    return merge


def check_against_pixels(image: ConvertedImage) -> NDArray[np.uint32]:
    """What strict COCO panoptic asks for, counted pixel by pixel."""
    ids, converted = decode_id_map(image.png), image.record
    assert ids.shape == (converted.height, converted.width)
    assert sorted({segment.id for segment in converted.segments}) == sorted(set(np.unique(ids).tolist()) - {0})
    assert len({segment.id for segment in converted.segments}) == len(converted.segments)
    for segment in converted.segments:
        rows, columns = np.nonzero(ids == segment.id)
        assert segment.area == len(rows)
        x, y, width, height = segment.bbox
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
        mask = coco_mask.decode({"size": list(ids.shape), "counts": segment.counts})
        assert np.array_equal(mask, ids == segment.id)
    assert converted.png_sha256 == sha256(image.png).hexdigest()
    assert converted.void_pixels == (ids == 0).sum()
    json.dumps(converted.to_dict(), allow_nan=False)
    return ids


def test_things_lie_over_stuff_and_the_rest_is_void(merge: Callable[..., ConvertedImage]) -> None:
    stuff = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    stuff[:10] = 2
    stuff[20:] = 1
    converted = merge([thing(5, rectangle(5, 5, 10, 20))], stuff)
    ids = check_against_pixels(converted)
    assert [(s.id, s.category_id, s.annotation_id) for s in converted.record.segments] == [
        (1, 1, None),
        (2, 2, None),
        (3, 8, 5),
    ]
    expected = np.select([stuff == 1, stuff == 2], [1, 2], 0)
    expected[5:25, 5:15] = 3
    assert np.array_equal(ids, expected)
    assert converted.record.void_pixels == 10 * WIDTH - 10 * 10


def test_stuff_below_things_disappears_without_a_trace(merge: Callable[..., ConvertedImage]) -> None:
    stuff = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    stuff[6:8, 6:8] = 1
    stuff[20:] = 2
    converted = merge([thing(5, rectangle(5, 5, 10, 10))], stuff)
    check_against_pixels(converted)
    assert [(s.id, s.category_id) for s in converted.record.segments] == [(1, 2), (2, 8)]
    assert converted.record.rejected == []


LARGE, SMALL = rectangle(2, 2, 20, 20), rectangle(10, 10, 5, 5)


@pytest.mark.parametrize(
    ("overlap", "visible"),
    [("last_on_top", [(2, 400)]), ("smallest_on_top", [(2, 375), (1, 25)])],
)
def test_overlap(merge: Callable[..., ConvertedImage], overlap: Overlap, visible: list[tuple[int, int]]) -> None:
    """The small one comes first in the export."""
    converted = merge([thing(2, LARGE), thing(1, SMALL)], overlap=overlap)
    check_against_pixels(converted)
    assert [(s.annotation_id, s.area) for s in converted.record.segments] == visible
    hidden = [(r.source, r.image, r.annotation_id, r.reason) for r in converted.record.rejected]
    assert hidden == ([] if len(visible) == 2 else [("yard", "yard/a.jpg", 1, "fully_hidden")])


def test_equal_sizes_go_by_order(merge: Callable[..., ConvertedImage]) -> None:
    rows = [thing(1, rectangle(2, 2, 8, 8)), thing(2, rectangle(5, 2, 8, 8))]
    segments = merge(rows, overlap="smallest_on_top").record.segments
    assert [(s.annotation_id, s.area) for s in segments] == [(1, 24), (2, 64)]


def test_overlap_is_refused_when_asked_to(merge: Callable[..., ConvertedImage]) -> None:
    rows = [thing(7, rectangle(20, 20, 5, 5)), thing(3, LARGE, order=8), thing(4, SMALL, order=9)]
    with pytest.raises(InputDataError, match=r"'yard/a\.jpg': the annotations 7 and 3 overlap") as caught:
        merge(rows, overlap="fail")
    assert "last_on_top" in str(caught.value)
    side_by_side = [thing(1, rectangle(0, 0, 9, 9)), thing(2, rectangle(9, 0, 9, 9))]
    full = np.full((HEIGHT, WIDTH), 1, dtype=np.uint8)
    assert [s.area for s in merge(side_by_side, full, overlap="fail").record.segments] == [
        WIDTH * HEIGHT - 162,
        81,
        81,
    ]


def test_crowds_of_a_class_are_one(merge: Callable[..., ConvertedImage]) -> None:
    things = [
        thing(1, rectangle(2, 2, 5, 5), iscrowd=1),
        thing(2, rectangle(12, 2, 5, 5), iscrowd=1),
        thing(3, rectangle(22, 2, 5, 5), iscrowd=1, category_id=9),
        thing(4, rectangle(30, 2, 5, 5)),
        thing(5, rectangle(2, 12, 3, 3), iscrowd=1),
        thing(6, rectangle(1, 11, 6, 6)),
    ]
    converted = merge(things)
    found = [(s.annotation_id, s.category_id, s.iscrowd, s.area, s.bbox) for s in converted.record.segments]
    assert found == [
        (1, 8, 1, 50, (2, 2, 15, 5)),
        (3, 9, 1, 25, (22, 2, 5, 5)),
        (4, 8, 0, 25, (30, 2, 5, 5)),
        (6, 8, 0, 36, (1, 11, 6, 6)),
    ]
    assert [(r.annotation_id, r.reason) for r in converted.record.rejected] == [
        (2, "joined_crowd"),
        (5, "joined_crowd"),
    ]


def test_hidden_crowds_are_not_joined(merge: Callable[..., ConvertedImage]) -> None:
    crowds = [thing(number, rectangle(10 * number, 2, 5, 5), iscrowd=1) for number in (1, 2)]
    converted = merge([*crowds, thing(3, rectangle(0, 0, WIDTH, HEIGHT))])
    assert [s.annotation_id for s in converted.record.segments] == [3]
    assert {(r.annotation_id, r.reason) for r in converted.record.rejected} == {
        (1, "fully_hidden"),
        (2, "fully_hidden"),
    }


def test_annotated_stuff_lies_between_labelled_stuff_and_things(merge: Callable[..., ConvertedImage]) -> None:
    """Each class is one segment; among themselves the later is on top; what is covered is rejected."""
    labelled = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labelled[:10] = 1
    rows = [
        thing(1, rectangle(0, 0, 10, 30)),
        thing(2, rectangle(0, 5, 40, 10), category_id=2, iscrowd=1),
        thing(3, rectangle(30, 20, 10, 10), category_id=2),
        thing(4, rectangle(20, 8, 5, 5), category_id=1),
        thing(5, rectangle(21, 9, 2, 2), category_id=2),
        thing(6, rectangle(21, 9, 2, 2), category_id=1),
        thing(7, rectangle(1, 1, 3, 3), category_id=2),
    ]
    for overlap in ("last_on_top", "smallest_on_top", "fail"):
        converted = merge(rows, labelled, overlap=overlap)
        expected = labelled.copy()
        expected[5:15], expected[20:, 30:], expected[8:13, 20:25], expected[:, :10] = 2, 2, 1, 3
        assert np.array_equal(check_against_pixels(converted), expected)
        found = [(s.category_id, s.iscrowd, s.annotation_ids) for s in converted.record.segments]
        assert found == [(1, 0, (4, 6)), (2, 0, (2, 3)), (8, 0, (1,))]
        assert [(r.annotation_id, r.reason) for r in converted.record.rejected] == [
            (5, "fully_hidden"),
            (7, "fully_hidden"),
        ]
        again = ConvertedRecord.from_dict(json.loads(json.dumps(converted.record.to_dict())))
        assert again == converted.record


def test_of_annotated_stuff_the_smaller_lies_on_top(merge: Callable[..., ConvertedImage]) -> None:
    """A tree is drawn before the facade behind it, and a wall of the tree's size after it."""
    tree, facade, wall = rectangle(5, 5, 10, 10), rectangle(0, 0, 30, 20), rectangle(10, 5, 10, 10)
    rows = [
        thing(1, tree, category_id=2),
        thing(2, facade, category_id=1),
        thing(3, wall, category_id=1),
        thing(4, rectangle(5, 5, 3, 3)),
        thing(5, rectangle(0, 0, 9, 9)),
    ]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:20, :30], expected[5:15, 5:10], expected[:9, :9] = 1, 2, 3
    converted = merge(rows, overlap_stuff="smallest_on_top")
    assert np.array_equal(check_against_pixels(converted), expected)
    assert [r.annotation_id for r in converted.record.rejected] == [4]  # things keep their order

    hidden = [r.annotation_id for r in merge(rows, overlap="smallest_on_top").record.rejected]
    assert hidden == [1]


def test_crowds_stay_crowds(merge: Callable[..., ConvertedImage]) -> None:
    counts = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT, 2 * HEIGHT, (WIDTH - 3) * HEIGHT]}
    converted = merge([thing(1, iscrowd=1, segmentation=counts), thing(2, rectangle(9, 9, 5, 5))])
    assert [(s.iscrowd, s.bbox) for s in converted.record.segments] == [(1, (1, 0, 2, HEIGHT)), (0, (9, 9, 5, 5))]


def is_drawn(ring: Polygon) -> bool:
    return bool(coco_mask.area(coco_mask.frPyObjects([ring], HEIGHT, WIDTH))[0])


coordinate = st.integers(-300, 4500).map(lambda value: value / 100)
polygon = st.integers(3, 5).flatmap(lambda n: st.lists(coordinate, min_size=2 * n, max_size=2 * n))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), overlap=st.sampled_from(["last_on_top", "smallest_on_top"]), seed=st.integers(0, 99))
def test_ids_are_those_of_plain_painting(
    data: st.DataObject,
    overlap: Overlap,
    seed: int,
    site_taxonomy: Taxonomy,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Beside it: pycocotools' masks painted one over the other, with no windows and no layers."""
    location = tmp_path_factory.getbasetemp() / "plain.png"
    if not location.exists():
        Image.new("RGB", (WIDTH, HEIGHT)).save(location)
    image = {
        "key": "yard/a.png",
        "source": "yard",
        "location": str(location),
        "width": WIDTH,
        "height": HEIGHT,
        "phash": "",
    }
    rings = [ring for ring in data.draw(st.lists(polygon, max_size=5)) if is_drawn(ring)]
    stuff = np.random.default_rng(seed).integers(0, 3, (HEIGHT // 10, WIDTH // 10)).astype(np.uint8)
    stuff = np.kron(stuff, np.ones((10, 10), dtype=np.uint8))
    rows = [thing(n, ring) for n, ring in enumerate(rings)]
    converted = merge_image(site_taxonomy, overlap, "last_on_top", MergeTask(image, rows, encode_labels(stuff), "a"))
    assert isinstance(converted, ConvertedImage)
    ids = check_against_pixels(converted)

    canvas = [[("stuff", int(label)) if label else None for label in row] for row in stuff]
    masks = [coco_mask.decode(coco_mask.frPyObjects([ring], HEIGHT, WIDTH))[..., 0] for ring in rings]
    layers = list(range(len(rings)))
    if overlap == "smallest_on_top":
        layers.sort(key=lambda n: -int(masks[n].sum()))
    for number in layers:
        for y, x in zip(*np.nonzero(masks[number]), strict=True):
            canvas[y][x] = ("thing", number)
    name_of = {
        s.id: ("stuff", s.category_id) if s.annotation_id is None else ("thing", s.annotation_id)
        for s in converted.record.segments
    }
    assert [[name_of.get(int(number)) for number in row] for row in ids] == canvas
    shown = {s.annotation_id for s in converted.record.segments if s.annotation_id is not None}
    assert shown | {r.annotation_id for r in converted.record.rejected} == set(range(len(rings)))
    assert not shown & {r.annotation_id for r in converted.record.rejected}


def many_pixels(count: int, size: int) -> Iterator[dict[str, Any]]:
    """One pixel each, down the columns."""
    for number in range(count):
        code = {"size": [size, size], "counts": [number, 1, size * size - number - 1]}
        row = {"annotation_id": number, "category_id": 8, "iscrowd": 0, "order": number}
        yield row | {"rle": segmentation_rle(code, size, size)["counts"].decode()}


@pytest.mark.parametrize(("count", "size"), [(300, 20), pytest.param(66_000, 260, marks=pytest.mark.slow)])
def test_more_segments_than_a_byte_or_two_can_count(
    site_taxonomy: Taxonomy, tmp_path: Path, count: int, size: int
) -> None:
    Image.new("RGB", (size, size)).save(tmp_path / "a.png")
    image = {
        "key": "a/a.png",
        "source": "a",
        "location": str(tmp_path / "a.png"),
        "width": size,
        "height": size,
        "phash": "",
    }
    task = MergeTask(image, list(many_pixels(count, size)), None, "a")
    converted = merge_image(site_taxonomy, "last_on_top", "last_on_top", task)
    assert isinstance(converted, ConvertedImage)
    ids = decode_id_map(converted.png)
    assert [segment.id for segment in converted.record.segments] == list(range(1, count + 1))
    assert np.array_equal(ids.T.ravel()[:count], np.arange(1, count + 1))
    assert converted.record.void_pixels == size * size - count
    last = converted.record.segments[-1]
    assert (last.area, last.bbox) == (1, ((count - 1) // size, (count - 1) % size, 1, 1))


def test_image_is_handed_on_or_normalised(photo: dict[str, Any], merge: Callable[..., ConvertedImage]) -> None:
    converted = merge([])
    assert converted.image == Path(photo["location"])
    assert (converted.record.stem, converted.record.image_file) == ("yard__a", "yard__a.jpg")
    with Image.open(photo["location"]) as image:
        image.convert("L").save(photo["location"])
    converted = merge([], stem="other")
    assert converted.record.image_file == "other.jpg"
    assert isinstance(converted.image, bytes)
    assert Image.open(BytesIO(converted.image)).mode == "RGB"


@pytest.mark.parametrize(
    ("stuff", "message"),
    [
        (np.zeros((WIDTH, HEIGHT), np.uint8), r"\[40, 30\], not \[30, 40\]"),
        (np.full((HEIGHT, WIDTH), 3, np.uint8), r"\[3\], which are no stuff"),
        (np.full((HEIGHT, WIDTH), 8, np.uint8), r"\[8\], which are no stuff"),
    ],
)
def test_unusable_stuff(merge: Callable[..., ConvertedImage], stuff: NDArray[Any], message: str) -> None:
    with pytest.raises(InputDataError, match=rf"'yard/a\.jpg'.*{message}"):
        merge([], stuff)


def test_unusable_rows(merge: Callable[..., ConvertedImage], photo: dict[str, Any]) -> None:
    with pytest.raises(InputDataError, match="annotation 1: the category id 3 is not in the taxonomy"):
        merge([thing(1, LARGE, category_id=3)])
    Image.new("RGB", (5, 5)).save(photo["location"])
    with pytest.raises(InputDataError, match="has changed"):
        merge([])


def test_stems() -> None:
    keys = [
        "a/b.jpg",
        "a/c.jpg",
        "a/c.png",
        "a/d__e.jpg",
        "a/d/e.jpg",
        "f/X.jpg",
        "f/x.png",
        "g/" + "é" * 120 + ".jpg",
        "g/\N{LATIN SMALL LETTER E WITH ACUTE}.jpg",
        "g/e\N{COMBINING ACUTE ACCENT}.jpg",
        "g/..jpg",
    ]
    stems = unique_stems(keys)
    assert stems["a/b.jpg"] == "a__b"
    assert len({normalize("NFC", stem).casefold() for stem in stems.values()}) == len(keys)
    assert all("/" not in stem and len(stem.encode()) <= 170 for stem in stems.values())
    assert all(stem.startswith(("a__", "f__", "g__")) for stem in stems.values())
    assert unique_stems(keys[::-1]) == stems
    assert unique_stems(keys[:2])["a/c.jpg"] == "a__c"


def test_dirty_exports_lose_nothing(
    make_export: Callable[..., Path],
    make_document: Callable[..., Any],
    site_taxonomy: Taxonomy,
    tmp_path: Path,
) -> None:
    """From raw files to PNGs: every annotation is in the output or listed, once."""
    square = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    entries = [
        square | {"id": 1, "segmentation": [rectangle(4, 4, 6, 6)]},
        square | {"id": 2, "segmentation": [rectangle(2, 2, 20, 20)]},
        square | {"id": 3, "segmentation": [rectangle(90, 2, 20, 20)]},
        square | {"id": 4, "segmentation": [rectangle(9, 2, 20, 20)], "image_id": 5},
        square | {"id": 2, "segmentation": [rectangle(30, 2, 5, 20)]},
        square | {"segmentation": [rectangle(30, 2, 5, 20)]},
        None,
    ]
    make_export("yard", make_document(annotations=entries))
    make_export("bay", make_document(images=[{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}]))
    make_export("dock", archive=True)
    make_export("dock", make_document(annotations=[]))
    exports = read_exports(tmp_path / "raw", site_taxonomy)
    stuff = {"yard/a.jpg": encode_labels(np.ones((HEIGHT, WIDTH), np.uint8))}
    records = []
    for converted in merge_images(exports.images, exports.annotations, stuff.get, site_taxonomy):
        assert isinstance(converted, ConvertedImage)
        check_against_pixels(converted)
        records.append(converted.record)
    rejected = all_rejected(exports.rejected, check_conservation(exports.annotations, exports.images, records))
    assert len(exports.annotations) + exports.rejected["annotation_id"].notna().sum() == 9
    listed = rejected[rejected["annotation_id"].notna()]
    assert sorted(listed[["source", "annotation_id", "reason"]].to_numpy().tolist()) == [
        ["bay", "1", "size_mismatch"],
        ["dock", "1", "duplicate_export"],
        ["yard", "#5", "bad_annotation_entry"],
        ["yard", "#6", "bad_annotation_entry"],
        ["yard", "1", "fully_hidden"],
        ["yard", "2", "duplicate_annotation_id"],
        ["yard", "3", "outside_image"],
        ["yard", "4", "annotation_without_image"],
    ]
    assert [record.key for record in records] == ["dock/a.jpg", "yard/a.jpg"]


def test_real_images(real_data: Path, repository: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf" / "base" / "taxonomy.json").read_text()))
    exports = read_exports(real_data / "construction_real" / "annotated", taxonomy)
    converted = list(merge_images(exports.images, exports.annotations, lambda key: None, taxonomy))
    annotations = exports.annotations.frame()
    assert len(converted) == 6
    for image in converted:
        assert isinstance(image, ConvertedImage)
        check_against_pixels(image)
        assert isinstance(image.image, Path)
        # The export states the outlines' areas; the pixels' differ by what lies on an edge or is covered.
        rows = annotations[annotations["key"] == image.record.key]
        stated = dict(zip(rows["annotation_id"], rows["area"], strict=True))
        for segment in image.record.segments:
            assert segment.area == pytest.approx(stated[segment.annotation_id or 0], rel=0.1)
    records = [image.record for image in converted if isinstance(image, ConvertedImage)]
    assert sum(len(record.segments) for record in records) == 8
    check_conservation(exports.annotations, exports.images, records)
