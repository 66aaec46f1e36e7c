from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from construction_panoptic.visualisation.labels import (
    LabelPlacer,
    line_breaks,
    load_font,
    shorten_text,
    text_size,
    thickest_point,
)

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=6)


@given(WORDS)
def test_lines_are_as_short_as_possible(words: list[str]) -> None:
    text = " ".join(words)
    variants = line_breaks(text)
    assert len(variants) == min(3, len(words))
    for count, variant in enumerate(variants, start=1):
        assert variant.replace("\n", " ") == text
        best = min(
            max(len(" ".join(words[a:b])) for a, b in zip((0, *cuts), (*cuts, len(words)), strict=True))
            for cuts in combinations(range(1, len(words)), count - 1)
        )
        assert max(map(len, variant.split("\n"))) == best


@pytest.mark.parametrize("aspect", [1.0, 4.0])
def test_thickest_point_is_the_centre_of_the_largest_ellipse(aspect: float) -> None:
    """Compare with every pixel centre tried as the centre, and every pixel outside as the limit."""
    rng = np.random.default_rng(3)
    mask = np.zeros((40, 60), dtype=bool)
    for _ in range(6):
        top, left = rng.integers(0, 30), rng.integers(0, 45)
        mask[top : top + 12, left : left + 18] = True
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    reach_of: dict[tuple[int, int], float] = {
        (int(y), int(x)): float(np.hypot((outside[:, 0] - y) * aspect, outside[:, 1] - x).min())
        for y, x in np.argwhere(padded)
    }
    reach, (x, y) = thickest_point(mask, aspect)
    best = max(reach_of.values())
    assert reach == pytest.approx(best - 0.5)
    assert reach_of[round(y + 0.5), round(x + 0.5)] >= 0.97 * best


def test_thickest_point_of_a_rectangle_is_its_middle_at_every_scale() -> None:
    mask = np.zeros((900, 1500), dtype=bool)
    mask[100:300, 200:1400] = True
    reach, (x, y) = thickest_point(mask, 1.0)
    assert 90 <= reach <= 100
    assert (x, y) == (pytest.approx(800, abs=10), pytest.approx(200, abs=10))


def test_an_empty_mask_has_no_reach() -> None:
    assert thickest_point(np.zeros((5, 7), dtype=bool), 2.0)[0] == 0


@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_labels_are_in_the_picture_and_never_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    placer = LabelPlacer(np.zeros((400, 500), dtype=bool), 16, 10)
    boxes = []
    for _ in range(40):
        height, width = rng.integers(3, 120, size=2)
        x, y = int(rng.integers(0, 500 - width)), int(rng.integers(0, 400 - height))
        label = placer.place(rng.random((height, width)) < 0.999, (x, y), "hollow concrete blocks 93%")
        if label is not None:
            assert 10 <= label.size <= 16
            boxes.append(label.box())
    assert boxes
    for left, top, right, bottom in boxes:
        assert left >= -1
        assert top >= -1
        assert right <= 501
        assert bottom <= 401
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_long_name_is_broken_to_stay_large() -> None:
    placer = LabelPlacer(np.zeros((400, 400), dtype=bool), 20, 10)
    label = placer.place(np.ones((150, 130), dtype=bool), (100, 100), "concrete mixer machine")
    assert label is not None
    assert label.text == "concrete\nmixer\nmachine"
    left, top, right, bottom = label.box()
    assert (left >= 100, top >= 100, right <= 230, bottom <= 250) == (True,) * 4
    assert label.size == 20


def test_a_name_larger_than_the_picture_is_left_out() -> None:
    placer = LabelPlacer(np.zeros((40, 40), dtype=bool), 16, 10)
    assert placer.place(np.ones((40, 40), dtype=bool), (0, 0), "antidisestablishmentarianism") is None


def test_shortened_text_fits_and_keeps_both_ends() -> None:
    font = load_font(14)
    text = "aluminium_frames_for_false_ceiling_514.jpg"
    short = shorten_text(text, font.getlength, 150)
    assert font.getlength(short) <= 150
    kept = short.split("…")
    assert text.startswith(kept[0])
    assert text.endswith(kept[1])
    assert min(map(len, kept)) >= 4
    assert shorten_text(text, font.getlength, 1000) == text
    assert shorten_text(text, len, 9) == "alum….jpg"


def test_text_grows_with_the_font() -> None:
    small, large = text_size("crane", load_font(10)), text_size("crane", load_font(30))
    assert large[0] > 2 * small[0]
    assert large[1] > 2 * small[1]
