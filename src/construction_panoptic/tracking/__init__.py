"""MLflow tracking, as a Kedro hook; no node knows of it."""

from construction_panoptic.tracking.hook import TrackingHook, mark_run_killed

__all__ = ["TrackingHook", "mark_run_killed"]
