"""The annotation_conversion pipeline."""

from construction_panoptic.pipelines.annotation_conversion.pipeline import create_pipeline as create_pipeline
