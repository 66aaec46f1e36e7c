from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from construction_panoptic.annotations.panoptic_png import MAX_SEGMENT_ID, decode_id_map, encode_id_map
from construction_panoptic.errors import InputDataError


def test_colours_are_those_of_the_coco_format() -> None:
    png = encode_id_map(np.array([[0, 1, 256], [65536, 70000, MAX_SEGMENT_ID]]))
    with Image.open(BytesIO(png)) as image:
        assert image.mode == "RGB"
        colours = np.asarray(image).tolist()
    assert colours == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [112, 17, 1], [255, 255, 255]]]


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        np.uint32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.integers(0, MAX_SEGMENT_ID),
    )
)
def test_round_trip(ids: NDArray[np.uint32]) -> None:
    decoded = decode_id_map(encode_id_map(ids))
    assert decoded.dtype == np.uint32
    assert np.array_equal(decoded, ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integer_type_and_memory_order(dtype: type) -> None:
    ids: NDArray[np.integer] = np.asfortranarray(np.arange(12).reshape(3, 4).astype(dtype))[::-1]
    assert np.array_equal(decode_id_map(encode_id_map(ids)), ids)


@pytest.mark.parametrize(
    "ids", [np.array([[-1]]), np.array([[MAX_SEGMENT_ID + 1]]), np.zeros((0, 3), int), np.zeros(3, int)]
)
def test_refuses_what_does_not_fit(ids: NDArray[np.integer]) -> None:
    with pytest.raises(ValueError, match="id"):
        encode_id_map(ids)


def test_reads_coco_own_example(real_data: Path) -> None:
    path = real_data / "coco_panoptic_examples" / "panoptic_examples" / "000000142238.png"
    ids = decode_id_map(path)
    colours = np.asarray(Image.open(path)).astype(int)
    assert np.array_equal(ids, colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2])


def test_alpha_is_ignored() -> None:
    stream = BytesIO()
    Image.fromarray(np.array([[[7, 1, 0, 0], [8, 0, 0, 255]]], dtype=np.uint8)).save(stream, format="PNG")
    assert decode_id_map(stream.getvalue()).tolist() == [[263, 8]]


def test_unusable_files(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.new("L", (3, 3)).save(grey)
    cut = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 2**24, (50, 50))
    cut.write_bytes(encode_id_map(noise)[:-3000])
    text = tmp_path / "text.png"
    text.write_text("no PNG")
    for path in (grey, cut, text, tmp_path / "missing.png"):
        with pytest.raises(InputDataError, match=path.name):
            decode_id_map(path)
