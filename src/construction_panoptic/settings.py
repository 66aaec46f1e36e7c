"""Project settings for Kedro; see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import os
from collections.abc import Iterator
from typing import Any

from kedro.framework.cli.utils import ENTRY_POINT_GROUPS

from construction_panoptic.catalog.files import ProjectCatalog
from construction_panoptic.configuration import CONFIG_LOADER_ARGS  # noqa: F401  # Kedro reads it here

# Threads that wait for each other spin, which ruins both where other programs need the cores too. A limit
# costs an idle machine nothing (libgomp reads it when torch is imported).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# MLflow sets its own logging up when it is imported.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# How long the thread that talks to a tracking server waits for an answer.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")

# Nothing is sent to anybody, in a folder without the project's .telemetry file either.
os.environ.setdefault("KEDRO_DISABLE_TELEMETRY", "1")

# Kedro loads the commands of all plugins for each of its commands, and those of kedro-mlflow load MLflow, which takes
# seconds. cli.py has them instead.
ENTRY_POINT_GROUPS["project"] = "construction_panoptic.commands"


class SessionHooks:
    """The hooks, made when a session asks for them: what they need takes seconds to import, too many for ``--help``."""

    def __iter__(self) -> Iterator[Any]:
        from construction_panoptic.catalog.hooks import ExclusiveHook, FreshnessHook
        from construction_panoptic.configuration import CONFIGURATION
        from construction_panoptic.preflight import outlines
        from construction_panoptic.reporting import REPORT
        from construction_panoptic.tracking import TRACKING

        return iter((CONFIGURATION, ExclusiveHook(), FreshnessHook(outlines), TRACKING, REPORT))


HOOKS = SessionHooks()
DATA_CATALOG_CLASS = ProjectCatalog
