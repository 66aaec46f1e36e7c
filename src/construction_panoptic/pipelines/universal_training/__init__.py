"""Fine-tuning of a panoptic model of `transformers`."""

from construction_panoptic.pipelines.universal_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
