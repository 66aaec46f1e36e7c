"""A project of its own for each test: the configuration copied, no data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.pipelines.project import Project


@pytest.fixture(scope="module")
def make_project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    def make() -> Project:
        return Project.create(tmp_path_factory.mktemp("project"), repository)

    return make


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Project:
    return make_project()
