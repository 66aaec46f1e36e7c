"""What a run prints: its plan at the start; at the end the tables, and where everything is."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from construction_panoptic.catalog.files import local_path
from construction_panoptic.evaluation.tables import class_quality_text, precision_text, quality_text
from construction_panoptic.files import shown_path


class ReportHook:
    """Prints what a run is going to do, and tables and places when it has ended well."""

    has_begun = False  # whether a node has begun to save what it makes

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Print what the run is going to do, by the names that ``--pipelines`` takes: the nodes have them as tags."""
        env = run_params.get("env") or "base"
        missing = ", only what is missing" if run_params.get("only_missing_outputs") else ""
        click.echo(f"To do, with the configuration of conf/{env}{missing}")
        for name, steps in Counter(tag for node in pipeline.nodes for tag in node.tags).items():
            click.echo(f"  {name:22s} {steps} step{'' if steps == 1 else 's'}")

    @hook_impl
    def before_dataset_saved(self) -> None:
        """Remember that there is something to go on with."""
        self.has_begun = True

    @hook_impl(trylast=True)
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Print what the run made: tables, and the entries that have ``show`` in their metadata."""
        written = sorted(pipeline.all_outputs())
        if "panoptic_quality" in written:
            quality = catalog.load("panoptic_quality")
            names = {category["id"]: category["name"] for category in catalog.load("panoptic_val")["categories"]}
            by_class = class_quality_text(quality, names)
            click.echo(f"\nPanoptic quality by class\n{by_class}\n\n{quality_text(quality)}")
        if "average_precision" in written:
            click.echo("\nBox average precision\n" + precision_text(catalog.load("average_precision")))
        click.echo("\nWhere to look")
        for name in written:
            if (getattr(catalog.get(name), "metadata", None) or {}).get("show"):
                click.echo(f"  {name:26s} {shown_path(local_path(catalog, name), Path(run_params['project_path']))}")
        env = f" --env {run_params['env']}" if run_params.get("env") else ""
        click.echo(f"  {'pipelines':26s} kedro viz run{env}")
        store = os.environ.get("MLFLOW_TRACKING_URI", "")
        local = not store.startswith("http")
        click.echo(f"  {'compare runs':26s} {'mlflow ui --backend-store-uri sqlite:///mlflow.db' if local else store}")
        if local:
            # MLflow 3 opens on traces of language models unless its address says otherwise.
            click.echo(f"  {'':26s} http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning")


REPORT = ReportHook()
