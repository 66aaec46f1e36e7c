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
    pipelines = {name: _in_namespace(name, pipeline) for name, pipeline in found.items() if name != "__default__"}
    # Kedro imports only the pipelines that a run names.
    if pipelines.keys() >= set(MAIN_JOB):
        pipelines["__default__"] = sum((pipelines[name] for name in MAIN_JOB), start=Pipeline([]))
    return pipelines


def _in_namespace(name: str, pipeline: Pipeline) -> Pipeline:
    """Put a pipeline's nodes under its name, which Kedro-Viz folds into one box; entries keep their names."""
    if all(node.namespace for node in pipeline.nodes):
        return pipeline
    return Pipeline(pipeline, namespace=name, prefix_datasets_with_namespace=False)
