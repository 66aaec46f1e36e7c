"""The wiring that all training stages have in common."""

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline


def stage_pipeline(stage: str, model: str, learner: str, train: Callable[..., Any], inputs: list[str]) -> Pipeline:
    """Wire the pipeline of a training stage: train, and draw the curves.

    Args:
        stage: namespace of its entries.
        model: what learns, for the names of the nodes.
        learner: the same in words, for the title of the curves.
        train: gives the outputs of each epoch, see `training_stage.TrainingOutputs`.
        inputs: arguments of ``train``, before the last one, the checkpoint to go on from.
    """

    def draw_curves(history: Any) -> tuple[Any, Any]:
        """Draw losses, validation and learning rates against the epoch."""
        # Here, since the check of a command imports this module and has no time for libraries that draw.
        from construction_panoptic.visualisation import interactive, still
        from construction_panoptic.visualisation.charts import training_chart

        chart = training_chart(history, f"Training of {learner}")
        return interactive.draw(chart), still.picture(chart)

    nodes = [
        Node(
            train,
            inputs=[*inputs, "resume_from"],
            outputs=["best", "history", "timings", "progress", "checkpoint"],
            name=f"train_{model}",
        ),
        Node(draw_curves, inputs="history", outputs=["curves", "curves_picture"], name=f"draw_{model}_curves"),
    ]
    parameters = {name for name in inputs if name.startswith("params:")}
    return Pipeline(nodes, namespace=stage, inputs=set(inputs) - parameters, parameters=parameters)
