"""The prediction pipeline."""

from construction_panoptic.pipelines.prediction.pipeline import create_pipeline as create_pipeline
