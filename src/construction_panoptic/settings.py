"""Project settings for Kedro; see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import os
from pathlib import Path

from omegaconf.resolvers import oc

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

from construction_panoptic.catalog.exclusive import ExclusiveHook
from construction_panoptic.catalog.freshness import FreshnessHook
from construction_panoptic.configuration import CONFIGURATION_FILES, ParametersHook
from construction_panoptic.reporting import ReportHook
from construction_panoptic.tracking import TrackingHook


def project_folder() -> str:
    """Find the project: the first folder with ``conf/base``, upwards from here, else from this file."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "conf" / "base").is_dir():
                return folder.as_posix()
    return Path.cwd().as_posix()


def mlflow_artifacts() -> str | None:
    """Give the folder of the local artifact store; None with a tracking server, which has its own."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else f"{project_folder()}/mlartifacts"


HOOKS = (ParametersHook(), CONFIGURATION_FILES, ExclusiveHook(), FreshnessHook(), TrackingHook(), ReportHook())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes single parameters; what it does not name stays as in conf/base.
    "merge_strategy": {"parameters": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "custom_resolvers": {
        "project": project_folder,
        "conf_file": CONFIGURATION_FILES.path,
        "mlflow_artifacts": mlflow_artifacts,
        "oc.env": oc.env,
    },
}
