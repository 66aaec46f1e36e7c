"""MLflow tracking, as a Kedro hook; no node knows of it."""

from construction_panoptic.tracking.hook import LAST_SECONDS, TRACKING
from construction_panoptic.tracking.store import tracking_error

__all__ = ["LAST_SECONDS", "TRACKING", "tracking_error"]
