"""The sample_data pipeline."""

from construction_panoptic.pipelines.sample_data.pipeline import create_pipeline as create_pipeline
