"""The project's pipelines."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

MAIN_JOB = (
    "annotation_conversion",
    "detection_training",
    "mask_head_training",
    "panoptic_evaluation",
    "error_analysis",
)


def register_pipelines() -> dict[str, Pipeline]:
    """Register the pipelines by name; the default one is the main job, from CVAT exports to PQ and its analysis."""
    found = find_pipelines(raise_errors=True)
    pipelines = {name: _named(name, pipeline) for name, pipeline in found.items() if name != "__default__"}
    # Kedro imports only the pipelines that a run names.
    if pipelines.keys() >= set(MAIN_JOB):
        pipelines["__default__"] = sum((pipelines[name] for name in MAIN_JOB), start=Pipeline([]))
    return pipelines


def _named(name: str, pipeline: Pipeline) -> Pipeline:
    """Tag a pipeline's nodes with its name, and put them into a namespace, which Kedro-Viz folds into one box."""
    if all(node.namespace for node in pipeline.nodes):
        return pipeline.tag(name)
    return Pipeline(pipeline, namespace=name, prefix_datasets_with_namespace=False, tags=name)
