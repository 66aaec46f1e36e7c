"""The project's pipelines."""

from kedro.framework.project import find_pipelines
from kedro.framework.project import pipelines as kedro_pipelines
from kedro.pipeline import Pipeline

RECIPES = {
    "detr": ("detection_training", "mask_head_training"),
    "panoptic_deeplab": ("panoptic_deeplab_training",),
    "universal": ("universal_training",),
}
"""Recipe → the pipelines that train it; a new recipe adds an entry. The last one makes the model."""

_WITHOUT_ONNX = ("universal",)  # torch does not export them
_DETR_MODEL = "mask_head.best"
_CONVERSION = "annotation_conversion"
_FOLLOWING = ("panoptic_evaluation", "error_analysis")
_JOBS = {
    "__default__" if recipe == "detr" else recipe: (recipe, (_CONVERSION, *trainings, *_FOLLOWING))
    for recipe, trainings in RECIPES.items()
} | {
    f"{recipe}_{name}": (recipe, (name,))
    for recipe in RECIPES
    if recipe != "detr"
    for name in (*_FOLLOWING, "prediction", "annotate_next", "model_export", "cvat_export")
}
"""Name of a pipeline that is made of others → the recipe whose model it uses, and its parts."""


def register_pipelines() -> dict[str, Pipeline]:
    """Register the pipelines by the names of their folders; and for each recipe the whole job and what uses its model.

    The default one is the whole job of the recipe `detr`, whose model a pipeline uses if its name says no other.
    """
    requested = kedro_pipelines._requested_pipelines  # Kedro imports only the pipelines that a run names
    if requested is not None:
        kedro_pipelines.set_requested([part for name in requested for part in _JOBS.get(name, ("", (name,)))[1]])
    found = find_pipelines(raise_errors=True)
    pipelines = {name: _named(name, pipeline) for name, pipeline in found.items() if name != "__default__"}
    jobs = {name: job for name, job in _JOBS.items() if pipelines.keys() >= set(job[1])}
    return pipelines | {
        name: _job(recipe, {part: pipelines[part] for part in parts}) for name, (recipe, parts) in jobs.items()
    }


def _job(recipe: str, parts: dict[str, Pipeline]) -> Pipeline:
    """Join the parts of a job; in a whole one, all that follows the conversion is in one namespace, the recipe's."""
    own = sum((_of_recipe(recipe, part) for name, part in parts.items() if name != _CONVERSION), start=Pipeline([]))
    if _CONVERSION not in parts:
        return own
    return parts[_CONVERSION] + Pipeline(own, namespace=recipe, prefix_datasets_with_namespace=False)


def _of_recipe(recipe: str, pipeline: Pipeline) -> Pipeline:
    """Give a pipeline the model of a recipe, and the recipe's name to the results that have one."""
    if recipe == "detr":
        return pipeline
    if recipe in _WITHOUT_ONNX and "exported_onnx" in pipeline.all_outputs():
        pipeline -= pipeline.only_nodes_with_outputs("exported_onnx")

    def own(names: set[str]) -> dict[str, str]:
        return {name: f"{recipe}{name.removeprefix('detr')}" for name in names if name.startswith("detr.")}

    model = {_DETR_MODEL: f"{recipe}.best"} if _DETR_MODEL in pipeline.inputs() else {}
    return Pipeline(pipeline, inputs=own(pipeline.inputs()) | model, outputs=own(pipeline.outputs()))


def _named(name: str, pipeline: Pipeline) -> Pipeline:
    """Tag a pipeline's nodes with its name, and put them into a namespace, which Kedro-Viz folds into one box."""
    if all(node.namespace for node in pipeline.nodes):
        return pipeline.tag(name)
    return Pipeline(pipeline, namespace=name, prefix_datasets_with_namespace=False, tags=name)
