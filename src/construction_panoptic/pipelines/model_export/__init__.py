"""The model_export pipeline."""

from construction_panoptic.pipelines.model_export.pipeline import create_pipeline as create_pipeline
