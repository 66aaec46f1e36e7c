"""The annotate_next pipeline."""

from construction_panoptic.pipelines.annotate_next.pipeline import create_pipeline as create_pipeline
