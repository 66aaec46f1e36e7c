"""The mask_head_training pipeline."""

from construction_panoptic.pipelines.mask_head_training.pipeline import create_pipeline as create_pipeline
