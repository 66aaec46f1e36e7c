"""The wiring that all training stages have in common."""

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline


def stage_pipeline(stage: str, model: str, train: Callable[..., Any], inputs: list[str]) -> Pipeline:
    """Wire the pipeline of a training stage: train, and report.

    Args:
        stage: namespace of its entries.
        model: what learns, for the names of the nodes.
        train: gives the outputs of each epoch, see `training_stage.TrainingOutputs`.
        inputs: arguments of ``train``, before the last one, the checkpoint to go on from.
    """
    nodes = [
        Node(
            train,
            inputs=[*inputs, "resume_from"],
            outputs=["best", "history", "timings", "progress", "checkpoint"],
            name=f"train_{model}",
        ),
        Node(
            report_training,
            inputs=["checkpoint", "history", "timings", "progress", "panoptic_val", "params:run_name"],
            outputs="report",
            name=f"report_{model}",
        ),
    ]
    parameters = {"params:run_name", *(name for name in inputs if name.startswith("params:"))}
    return Pipeline(nodes, namespace=stage, inputs={"panoptic_val", *inputs} - parameters, parameters=parameters)


def report_training(
    checkpoint: dict[str, Any], history: Any, timings: Any, progress: Any, panoptic_val: dict[str, Any], run_name: str
) -> str:
    """Set the training report: curves, and the last pictures of the progress."""
    # Here, since the check of a command imports this module and has no time for libraries that draw.
    from construction_panoptic.visualisation.page import about_model
    from construction_panoptic.visualisation.reports import training_report

    best = checkpoint["best"]["epoch"]
    model = f"{checkpoint['stage']}, epoch {checkpoint['epoch']}" + (f", best {best}" if best else "")
    return training_report(about_model(model, run_name, panoptic_val), history, timings, progress)
