"""Fine-tuning of a panoptic model of `transformers`."""

from construction_panoptic.pipelines.universal_training.pipeline import create_pipeline as create_pipeline
