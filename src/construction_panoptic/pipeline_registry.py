"""The project's pipelines."""

from kedro.framework.project import find_pipelines
from kedro.framework.project import pipelines as kedro_pipelines
from kedro.pipeline import Pipeline

_DETR_MODEL = "mask_head.best"  # what all that follows training takes, if nothing else is said

RECIPES = {
    "__default__": (("detection_training", "mask_head_training"), _DETR_MODEL),
    "panoptic_deeplab": (("panoptic_deeplab_training",), "panoptic_deeplab.best"),
}
"""Name of a whole job → the trainings in it, and the model that they make; a new recipe adds a line."""

_FOLLOWING = ("panoptic_evaluation", "error_analysis")


def register_pipelines() -> dict[str, Pipeline]:
    """Register the pipelines by name, and those of whole recipes, from CVAT exports to PQ and its analysis.

    The default one is the DETR recipe.
    """
    requested = kedro_pipelines._requested_pipelines  # Kedro imports only the pipelines that a run names
    if requested is not None:
        kedro_pipelines.set_requested([part for name in requested for part in _parts(name)])
    found = find_pipelines(raise_errors=True)
    pipelines = {name: _named(name, pipeline) for name, pipeline in found.items() if name != "__default__"}
    for recipe, (_, model) in RECIPES.items():
        if pipelines.keys() >= set(_parts(recipe)):
            parts = [_with_model(pipelines[name], model) for name in _parts(recipe)]
            pipelines[recipe] = sum(parts, start=Pipeline([]))
    return pipelines


def _parts(name: str) -> tuple[str, ...]:
    return ("annotation_conversion", *RECIPES[name][0], *_FOLLOWING) if name in RECIPES else (name,)


def _with_model(pipeline: Pipeline, model: str) -> Pipeline:
    if model == _DETR_MODEL or _DETR_MODEL not in pipeline.inputs():
        return pipeline
    return Pipeline(pipeline, inputs={_DETR_MODEL: model})


def _named(name: str, pipeline: Pipeline) -> Pipeline:
    """Tag a pipeline's nodes with its name, and put them into a namespace, which Kedro-Viz folds into one box."""
    if all(node.namespace for node in pipeline.nodes):
        return pipeline.tag(name)
    return Pipeline(pipeline, namespace=name, prefix_datasets_with_namespace=False, tags=name)
