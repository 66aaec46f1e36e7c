"""One small sample for all tests of the package."""

from pathlib import Path

import pytest

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample import generate


@pytest.fixture(scope="session")
def settings() -> SampleSettings:
    return SampleSettings(images=90, rare_images=3, near_duplicate_fraction=0.1, worker_fraction=0.4, seed=3)


@pytest.fixture(scope="session")
def sample(settings: SampleSettings) -> dict[str, bytes]:
    """Every file of the sample, by its relative path."""
    return dict(generate(settings))


@pytest.fixture(scope="session")
def sample_folder(sample: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample on disk."""
    root = tmp_path_factory.mktemp("sample")
    for name, content in sample.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
