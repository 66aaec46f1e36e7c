"""What a run prints: its plan at the start; at the end the tables, and where everything is."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from construction_panoptic.catalog.files import local_path, shown_path
from construction_panoptic.evaluation.tables import class_quality_text, precision_text, quality_text

# Entry → what it shows; printed for the entries that the run has written.
PLACES = {
    "sample_raw_data": "sample exports",
    "rejected_records": "rejected records",
    "repaired_records": "repaired records",
    "dataset_summary": "data set in numbers",
    "data_report": "data report",
    "split_audit": "split audit",
    "ground_truth_mosaic": "ground truth pictures",
    "class_balance_picture": "class balance",
    "detection.curves_picture": "detector curves",
    "mask_head.curves_picture": "mask head curves",
    "mask_head.best": "best model",
    "panoptic_predictions": "predictions",
    "panoptic_quality": "PQ in numbers",
    "average_precision": "AP in numbers",
    "panoptic_quality_picture": "PQ by class",
    "example_sheet": "example pictures",
    "worst_images": "worst images",
    "evaluation_report": "evaluation report",
    "prediction_results": "predicted pictures",
    "prediction_seen": "what was seen",
    "prediction_rejected": "files not readable",
    "exported_model": "exported model",
    "exported_onnx": "ONNX model",
    "served_model": "model for MLflow",
}


class ReportHook:
    """Prints what a run is going to do, and tables and places when it has ended well."""

    def __init__(self) -> None:
        self._project = Path.cwd()

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Remember the project folder, to print paths relative to it."""
        self._project = context.project_path

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Print what the run is going to do."""
        env = run_params.get("env") or "base"
        missing = ", only what is missing" if run_params.get("only_missing_outputs") else ""
        click.echo(f"To do, with the configuration of conf/{env}{missing}")
        for name, steps in Counter(node.namespace or "" for node in pipeline.nodes).items():
            click.echo(f"  {name:22s} {steps} step{'' if steps == 1 else 's'}")

    @hook_impl(trylast=True)
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Print what the run made."""
        written = pipeline.all_outputs()
        if "panoptic_quality" in written:
            click.echo(_quality_report(catalog))
        if "average_precision" in written:
            click.echo("\nBox average precision\n" + precision_text(catalog.load("average_precision")))
        places = {
            what: shown_path(local_path(catalog, name), self._project)
            for name, what in PLACES.items()
            if name in written
        }
        click.echo("\nWhere to look")
        for what, place in places.items():
            click.echo(f"  {what:22s} {place}")
        env = f" --env {run_params['env']}" if run_params.get("env") else ""
        click.echo(f"  {'pipelines':22s} kedro viz run{env}")
        store = os.environ.get("MLFLOW_TRACKING_URI", "")
        runs = store if store.startswith("http") else "mlflow ui --backend-store-uri sqlite:///mlflow.db"
        click.echo(f"  {'compare runs':22s} {runs}")


def _quality_report(catalog: CatalogProtocol) -> str:
    """Give the PQ tables: by class, and of all, things and stuff."""
    quality = catalog.load("panoptic_quality")
    names = {category["id"]: category["name"] for category in catalog.load("panoptic_val")["categories"]}
    return f"\nPanoptic quality by class\n{class_quality_text(quality, names)}\n\n{quality_text(quality)}"
