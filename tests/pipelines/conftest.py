"""A project of its own for each test: the configuration copied, no data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.project import Project


@pytest.fixture(scope="module")
def make_project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    def make() -> Project:
        folder = tmp_path_factory.mktemp("project")
        shutil.copytree(repository / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
        (folder / "conf" / "local").mkdir()
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(repository / name, folder / name)
        (folder / "src").mkdir()  # the installed package is run
        return Project(folder)

    return make


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Project:
    return make_project()
