"""The check of a command before it loads what takes seconds: environment, parameters, names, and what must be there."""

import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kedro.framework.project import pipelines as kedro_pipelines
from kedro.io import CatalogConfigResolver
from kedro.pipeline import Pipeline
from kedro.pipeline.pipeline import OutputNotUniqueError
from kedro.utils import find_kedro_project

from construction_panoptic import pipelines
from construction_panoptic.config.base import nearest
from construction_panoptic.config.parameters import GROUPS, check_parameters
from construction_panoptic.configuration import config_loader
from construction_panoptic.errors import InputDataError, ParameterError

WEIGHTS_FILES = (".pt", ".pth", ".safetensors")
RUNNERS = ("SequentialRunner", "ThreadRunner")  # the hooks remember the run, so that all nodes share a process


def check_run(options: Mapping[str, Any]) -> None:
    """Check the options of ``kedro run``.

    Raises:
        ParameterError: an environment, parameter, pipeline, node or entry that there is not.
        InputDataError: the pipelines need what another one has not made yet.
    """
    project = project_path()
    source = Path(options["conf_source"] or project / "conf")
    env = check_environment(source, options["env"])
    names = options["pipelines"] or [options["pipeline"] or "__default__"]
    registered = outlines()
    for name in names:
        _check_name("--pipelines", name, registered)
    config = config_loader(source, options["env"], options["params"])
    check_parameters(config["parameters"])
    try:
        together = sum((registered[name] for name in names), Pipeline([]))
    except (ValueError, OutputNotUniqueError):  # two nodes of one name, or of two names for one result
        raise ParameterError(
            f"--pipelines {','.join(names)}: some of these make the same files; run one after the other"
        ) from None
    chosen = _filtered(together, options)
    if options["runner"]:
        _check_name("--runner", options["runner"], RUNNERS)
    if options["is_async"] and _trained(chosen):
        raise ParameterError("--async: trainings save epoch by epoch, so it is not for them; leave it out")
    for name in options["load_versions"] or ():
        _check_name("--load-versions", name, chosen.datasets())
    _check_paths(chosen, config["parameters"], options["params"], project)
    _check_device(chosen, config["parameters"], for_a_gpu=env in (None, "base", "local"))
    if not options["only_missing_outputs"]:
        entries = CatalogConfigResolver(config["catalog"], default_runtime_patterns={})
        _check_inputs(chosen, registered, entries, project)


def check_environment(source: Path, env: str | None) -> str | None:
    """Give the environment; raise `ParameterError` where it is no folder of the configuration."""
    env = env or os.environ.get("KEDRO_ENV")
    if env and source.is_dir():
        _check_name("--env", env, sorted(folder.name for folder in source.iterdir() if folder.is_dir()))
    return env


def _check_name(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ParameterError(f"{option} {name}: there is no such name; {nearest(name, sorted(known))}")


def project_path() -> Path:
    """Give the folder of the project, as Kedro finds it."""
    return find_kedro_project(Path.cwd()) or Path.cwd()


def outlines() -> dict[str, Pipeline]:
    """Register the pipelines without their nodes' functions, whose libraries take seconds to import."""
    from construction_panoptic.pipeline_registry import register_pipelines

    loaded = _forget_pipelines()
    folders = (module.name for module in pkgutil.iter_modules(pipelines.__path__) if module.ispkg)
    sys.modules.update({f"{pipelines.__name__}.{name}.nodes": _NoFunctions(name) for name in folders})
    try:
        kedro_pipelines.set_requested(None)
        return register_pipelines()
    finally:
        _forget_pipelines()
        sys.modules.update(loaded)


def _forget_pipelines() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.startswith(f"{pipelines.__name__}.")]
    return {name: sys.modules.pop(name) for name in names}


class _NoFunctions(ModuleType):
    """Stands in for a module of node functions."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


def _filtered(pipeline: Pipeline, options: Mapping[str, Any]) -> Pipeline:
    nodes = [node.name for node in pipeline.nodes]
    entries = pipeline.datasets()
    known: dict[str, Iterable[str]] = {
        "node_names": nodes,
        "from_nodes": nodes,
        "to_nodes": nodes,
        "from_inputs": entries,
        "to_outputs": entries,
        "tags": {tag for node in pipeline.nodes for tag in node.tags},
    }
    for option, names in known.items():
        for name in options[option] or ():
            _check_name("--nodes" if option == "node_names" else f"--{option.replace('_', '-')}", name, names)
    try:
        return pipeline.filter(**{option: options[option] for option in known}, node_namespaces=options["namespaces"])
    except ValueError as error:
        raise ParameterError(str(error)) from error


def _check_paths(pipeline: Pipeline, parameters: Mapping[str, Any], given: Mapping[str, Any], project: Path) -> None:
    paths = {name: given[name] for name in ("stuff_predictions", "taxonomy") if name in given}
    weights = {f"{stage}.weights": str(parameters[stage].get("weights")) for stage in _trained(pipeline)}
    paths |= {name: path for name, path in weights.items() if Path(path).suffix in WEIGHTS_FILES}
    for name, path in paths.items():
        if not (project / path).exists():
            raise ParameterError(f"{name}: there is no {path}")


def _check_device(pipeline: Pipeline, parameters: Mapping[str, Any], *, for_a_gpu: bool) -> None:
    used = [group for group in GROUPS if f"params:{group}" in pipeline.inputs()]
    here = [group for group in used if parameters[group].get("execution", {}).get("engine") != "ray"]
    devices = {group: parameters[group].get("device", "") for group in here}
    cuda = {device for device in devices.values() if device.startswith("cuda")}
    auto = for_a_gpu and any(devices.get(stage) == "auto" for stage in _trained(pipeline))
    if not cuda and not auto:
        return
    import torch  # takes seconds; what is asked for needs it anyway

    from construction_panoptic.parallel.device import resolve_device

    for device in sorted(cuda):
        resolve_device(device)
    if auto and not torch.cuda.is_available():
        raise ParameterError(
            "There is no CUDA device, and on a CPU this recipe takes days. Use --env laptop --pipelines "
            "panoptic_deeplab, which is made for a CPU, or go on with --params device=cpu."
        )


def _trained(pipeline: Pipeline) -> list[str]:
    """Give the stages that a pipeline trains, which name groups of parameters."""
    return sorted(name.removesuffix(".checkpoint") for name in pipeline.all_outputs() if name.endswith(".checkpoint"))


def _check_inputs(
    pipeline: Pipeline, registered: Mapping[str, Pipeline], entries: CatalogConfigResolver, project: Path
) -> None:
    missing = []
    by_size = sorted(registered, key=lambda name: len(registered[name].nodes))  # the shortest that makes it is named
    for name in sorted(pipeline.inputs()):
        maker = next((maker for maker in by_size if name in registered[maker].all_outputs()), None)
        path = entries.resolve_pattern(name).get("filepath") if maker else None
        if path is not None and not (project / path).exists():
            missing.append(f"{name} is missing ({path}): the pipeline {maker} makes it.")
    if missing:
        advice = "Run that first, or in the same command: --pipelines takes several names."
        raise InputDataError("\n".join([*missing, advice]))
