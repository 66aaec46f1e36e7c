import numpy as np
import pytest
from scipy import ndimage

from construction_panoptic.sample.painting import NoiseBank
from construction_panoptic.sample.shapes import DRAWINGS, WORKER, draw_sprite


@pytest.fixture(scope="module")
def noise() -> NoiseBank:
    return NoiseBank(np.random.default_rng(0))


@pytest.mark.parametrize("name", [*DRAWINGS, "worker"])
def test_drawing_fills_its_declared_size_in_one_piece(name: str, noise: NoiseBank) -> None:
    drawing = DRAWINGS.get(name, WORKER)
    width = 60 / np.sqrt(drawing.height)
    for seed in range(6):
        sprite = draw_sprite(drawing, np.random.default_rng(seed), noise, width)
        inside = sprite.alpha > 0.5
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert columns[-1] - columns[0] + 1 == pytest.approx(width, rel=0.12, abs=3)
        # Booms, buckets and loads differ in height.
        assert rows[-1] - rows[0] + 1 == pytest.approx(width * drawing.height, rel=0.4, abs=3)
        assert rows[-1] + 1 == pytest.approx(sprite.alpha.shape[0] - sprite.margin, abs=3)
        labels, _ = ndimage.label(inside, np.ones((3, 3)))
        assert np.bincount(labels[inside]).max() > 0.97 * inside.sum()
        border = np.concatenate([sprite.alpha[[0, -1]].ravel(), sprite.alpha[:, [0, -1]].ravel()])
        assert border.max() == 0


def test_classes_have_their_own_colours(noise: NoiseBank) -> None:
    """Coarse colour histograms tell the classes apart: the nearest other drawing is of the same class."""

    def histogram(name: str, seed: int) -> np.ndarray:
        sprite = draw_sprite(DRAWINGS[name], np.random.default_rng(seed), noise, 40)
        bins = (sprite.rgb[sprite.alpha > 0.5] * 3.999).astype(int) @ np.array([16, 4, 1])
        counts = np.bincount(bins, minlength=64)
        return np.sqrt(counts / counts.sum())

    names = [name for name in DRAWINGS for _ in range(6)]
    features = np.array([histogram(name, seed) for seed, name in enumerate(names)])
    likeness = features @ features.T - 2 * np.eye(len(names))
    nearest = [names[place] for place in likeness.argmax(1)]
    assert np.mean([a == b for a, b in zip(names, nearest, strict=True)]) > 0.9


def test_placed_puts_left_and_lower_edge() -> None:
    noise = NoiseBank(np.random.default_rng(0))
    sprite = draw_sprite(DRAWINGS["aac_blocks"], np.random.default_rng(4), noise, 40).placed(12.2, 80.4)
    rows, columns = np.nonzero(sprite.alpha > 0.5)
    assert sprite.left + columns.min() == pytest.approx(12, abs=2)
    assert sprite.top + rows.max() + 1 == pytest.approx(80, abs=2)
