import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from construction_panoptic.annotations.merging.segment_shapes import segment_rles, segment_shapes


@settings(max_examples=80, deadline=None)
@given(
    arrays.arrays(
        np.uint32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 1, 2, 99]),
    )
)
def test_run_lengths_equal_pycocotools(id_map: NDArray[np.uint32]) -> None:
    codes = segment_rles(id_map)
    assert set(codes) == set(id_map.ravel().tolist()) - {0}
    for segment_id, code in codes.items():
        expected = rle_codec.encode(np.asfortranarray(id_map == segment_id))
        assert code == {"size": list(id_map.shape), "counts": expected["counts"].decode()}


@settings(max_examples=80, deadline=None)
@given(
    arrays.arrays(
        np.uint32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 2, 16777215]),
    )
)
def test_areas_and_boxes_equal_those_of_the_pixels(id_map: NDArray[np.uint32]) -> None:
    codes, shapes = segment_rles(id_map), segment_shapes(id_map)
    assert list(shapes) == sorted(shapes)
    assert set(shapes) == set(id_map.ravel().tolist()) - {0}
    for segment_id, (area, box, counts) in shapes.items():
        assert counts == codes[segment_id]["counts"]
        rows, columns = np.nonzero(id_map == segment_id)
        x, y = columns.min(), rows.min()
        assert area == len(rows)
        assert box == (x, y, columns.max() - x + 1, rows.max() - y + 1)
