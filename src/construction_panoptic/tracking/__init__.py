"""MLflow tracking, as a Kedro hook; no node knows of it."""

from construction_panoptic.tracking.database import database_error
from construction_panoptic.tracking.hook import TrackingHook, mark_run_killed

__all__ = ["TrackingHook", "database_error", "mark_run_killed"]
