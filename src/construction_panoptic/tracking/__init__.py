"""MLflow tracking, as a Kedro hook; no node knows of it."""

from construction_panoptic.tracking.hook import TrackingHook

__all__ = ["TrackingHook"]
