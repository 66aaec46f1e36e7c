"""Fixtures of the tests in a browser."""

from tests.integration.pipelines.conftest import make_project, project

__all__ = ["make_project", "project"]
