"""The cvat_export pipeline."""

from construction_panoptic.pipelines.cvat_export.pipeline import create_pipeline as create_pipeline
