"""The error_analysis pipeline."""

from construction_panoptic.pipelines.error_analysis.pipeline import create_pipeline as create_pipeline
