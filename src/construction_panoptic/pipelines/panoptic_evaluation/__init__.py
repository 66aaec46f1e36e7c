"""The panoptic_evaluation pipeline."""

from construction_panoptic.pipelines.panoptic_evaluation.pipeline import create_pipeline as create_pipeline
