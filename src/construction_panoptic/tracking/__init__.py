"""MLflow tracking, as a Kedro hook; no node knows of it."""

from construction_panoptic.tracking.hook import TrackingHook, mark_run_killed
from construction_panoptic.tracking.store import tracking_error

__all__ = ["TrackingHook", "mark_run_killed", "tracking_error"]
