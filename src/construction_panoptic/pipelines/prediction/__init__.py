"""The prediction pipeline."""

from construction_panoptic.pipelines.prediction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
