"""The project's pipelines."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

MAIN_JOB = ("annotation_conversion", "detection_training", "mask_head_training", "panoptic_evaluation")


def register_pipelines() -> dict[str, Pipeline]:
    """Register the pipelines by name; the default one is the main job, from CVAT exports to a PQ table."""
    pipelines = find_pipelines(raise_errors=True)
    # Kedro imports only the pipelines that a run names.
    if pipelines.keys() >= set(MAIN_JOB):
        pipelines["__default__"] = sum((pipelines[name] for name in MAIN_JOB), start=Pipeline([]))
    return pipelines
