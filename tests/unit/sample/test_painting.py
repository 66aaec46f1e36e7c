import numpy as np

from construction_panoptic.sample.painting import NoiseBank, shade, vary


def test_shade_scales_and_clips() -> None:
    assert shade((100, 200, 10), 1.5) == (150, 255, 15)
    assert shade((100, 200, 10), 0) == (0, 0, 0)


def test_vary_stays_near_and_in_range() -> None:
    rng = np.random.default_rng(0)
    colours = np.array([vary(rng, (250, 128, 3), 8) for _ in range(300)])
    assert colours.min() >= 0
    assert colours.max() <= 255
    assert abs(colours[:, 1].mean() - 128) < 2
    assert 5 < colours[:, 1].std() < 13


def test_noise_is_standardised_and_coarser_with_larger_scale() -> None:
    rng = np.random.default_rng(1)
    bank = NoiseBank(rng, side=128)
    roughness = []
    for scale in (0, 2, 5):
        whole = bank.crop(rng, (128, 128), scale)
        assert abs(float(whole.mean())) < 1e-4
        assert abs(float(whole.std()) - 1) < 1e-3
        roughness.append(float(np.abs(np.diff(whole, axis=1)).mean()))
    assert roughness[0] > 2 * roughness[1] > 3 * roughness[2]


def test_noise_tiles_repeat_without_a_seam() -> None:
    rng = np.random.default_rng(2)
    crops = [NoiseBank(rng, side=64).crop(rng, (64, 64), 5) for _ in range(8)]
    assert all(float(np.abs(np.diff(crop, axis=0)).max()) < 0.8 for crop in crops)
