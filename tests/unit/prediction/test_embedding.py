"""How unlike each other images are to a model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.models.protocol import Images, PanopticModel
from construction_panoptic.prediction.embedding import Novelty, embed_images
from tests.unit.prediction.conftest import pixels

SETTINGS = PredictionSettings(device="cpu", execution=ONE_PROCESS)


def test_novelty_is_the_mean_distance_to_the_nearest_cell() -> None:
    images, known = torch.randn(5, 64, 7), torch.randn(3, 64, 7) * torch.arange(1, 8)
    novelty = Novelty(images, known)

    scale = known.reshape(-1, 7).double().std(0, correction=0).numpy() * 14**0.5
    cells, added = images.double().numpy() / scale, known.reshape(-1, 7).double().numpy() / scale

    def expected() -> list[float]:
        return [cdist(image, added).min(axis=1).mean() for image in cells]

    assert novelty.of_each == pytest.approx(expected(), abs=1e-4)
    novelty.add(3)
    added = np.concatenate([added, cells[3]])
    assert novelty.of_each == pytest.approx(expected(), abs=1e-3)
    assert novelty.of_each[3] == pytest.approx(0, abs=1e-3)


def test_cells_taken_at_random_are_one_apart() -> None:
    images = torch.randn(2, 64, 400) * torch.arange(1, 401)
    assert Novelty(images[:1], images[1:]).of_each == pytest.approx([1], abs=0.1)  # less, for it is the nearest


def test_an_image_is_embedded_by_itself(trained: PanopticModel, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "wide.png", "a_again.png")]
    for file, seed, width in zip(files, (1, 2, 1), (120, 300, 120), strict=True):
        Image.fromarray(pixels(seed, width=width)).save(file)
    found = embed_images(trained, files, SETTINGS)
    assert found.shape[:2] == (3, 64)
    assert found.dtype == torch.float32
    assert found[0].equal(found[2])
    assert found[1].equal(embed_images(trained, files[1:2], SETTINGS)[0])
    assert not found[0].allclose(found[1], atol=1e-2)
    prepared = trained.prepare(torch.from_numpy(pixels(1).copy()).permute(2, 0, 1))
    with torch.no_grad():
        features = trained.features(Images(prepared[None], None, [(64, 96)], [(80, 120)]))
    assert features.shape[-2:] == (4, 6)
    corners = features[0][:, [0, 0, -1, -1], [0, -1, 0, -1]].T
    torch.testing.assert_close(found[0][[0, 7, 56, 63]], corners)
    novelty = Novelty(found[:2], found[2:])
    assert novelty.of_each[0] == pytest.approx(0, abs=1e-3)
    assert novelty.of_each[1] > 0.1


def test_a_file_that_is_missing_is_named(trained: PanopticModel, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"none\.png"):
        embed_images(trained, [tmp_path / "none.png"], SETTINGS)
