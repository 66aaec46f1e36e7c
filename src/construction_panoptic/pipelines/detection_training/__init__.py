"""The detection_training pipeline."""

from construction_panoptic.pipelines.detection_training.pipeline import create_pipeline as create_pipeline
