"""The recipe without boxes, in one stage: Panoptic-DeepLab."""

from construction_panoptic.pipelines.panoptic_deeplab_training.pipeline import create_pipeline as create_pipeline
