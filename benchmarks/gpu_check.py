"""Everything that a GPU changes, in one command, within 8 minutes: ``python -m benchmarks.gpu_check``.

1. Parity: one training step of each network and the merging of masks, on a CPU in float32 and on the GPU in float32
   and bfloat16.
2. `torch.compile` of the detector: time of a step with and without.
3. The benchmarks of the networks, with memory, beside their peers (`transformers` is needed).
4. Panoptic-DeepLab on the sample: trained, interrupted, resumed, evaluated (Kedro is needed).

What lacks its library is left out, and the table says so. Writes `gpu_check.json` and `gpu_check.md` into --out.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import copy_project
from benchmarks.measuring import SIDES, Options, Step, compare, run, to_array
from construction_panoptic.files import write_bytes, write_json
from construction_panoptic.models.detr.model import compile_detector
from construction_panoptic.parallel.device import autocast

TOLERANCES = {"float32": 5e-3, "bfloat16": 0.2}
"""Largest differences allowed from a CPU in float32: of losses, of gradients by their norm, of the fraction of pixels.

Losses here are up to 10; bfloat16 has 8 bits of mantissa.
"""

PARITY = {
    "detection_step": TOLERANCES,
    "frozen_step": TOLERANCES,
    "panoptic_deeplab_step": TOLERANCES,
    # With random weights many pixels lie between two masks: bfloat16 decides most of them otherwise.
    "panoptic_inference": {"float32": 1e-2},
}
BENCHMARKS = ("frozen_step", "detection_step", "detector_inference", "panoptic_inference", "panoptic_deeplab_step")
SAMPLE_PQ = 0.8
RECIPE = "panoptic_deeplab"


@dataclass(frozen=True)
class Check:
    """One line of the table; ``passed`` is None where nothing is required."""

    name: str
    found: str
    required: str = ""
    passed: bool | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the check itself")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the rounds of a benchmark, about")
    parser.add_argument("--project", type=Path, default=Path(), help="the project's folder, for the sample")
    parser.add_argument("--no-sample", action="store_true", help="leave out the training on the sample")
    parser.add_argument("--out", type=Path, default=Path("data/08_reporting/gpu_check"))
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: torch sees none. --device cpu tries the check itself")
    options = Options(device=chosen.device, small=chosen.small, seconds=chosen.seconds, rounds=5)
    chosen.out.mkdir(parents=True, exist_ok=True)
    checks = [Check("machine", machine(options.torch_device))]
    parts = [parity(options), compiled(options), benchmarks(options)]
    if not chosen.no_sample:
        parts.append(sample(chosen.project, chosen.out, chosen.device))
    for part in parts:
        for check in part:
            checks.append(check)
            print(f"{check.name}: {check.found}", file=sys.stderr, flush=True)
    write_json(chosen.out / "gpu_check.json", [vars(check) for check in checks], indent=2)
    write_bytes(chosen.out / "gpu_check.md", table(checks).encode())
    print(table(checks))
    if any(check.passed is False for check in checks):
        sys.exit("not all checks passed")


def machine(device: torch.device) -> str:
    """Say what was measured on."""
    if device.type == "cpu":
        return f"CPU ({platform.machine()}), torch {torch.__version__}"
    gpu = torch.cuda.get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"


def parity(options: Options) -> Iterator[Check]:
    """Compare losses, gradients and segments with those of a CPU in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, tolerances in PARITY.items():
        module = importlib.import_module(f"benchmarks.{name}")
        ours = getattr(module, "our_outputs", module.ours)
        expected = _outputs(ours(replace(options, device="cpu")))
        for precision, tolerance in tolerances.items():
            step = ours(options)
            with autocast(options.torch_device, precision):
                differences = compare(expected, _outputs(step))
            worst = max(differences, key=lambda output: differences[output])
            found = f"largest difference {differences[worst]:.1e} ({worst})"
            passed = bool(differences[worst] <= tolerance)
            yield Check(f"parity of {name}, {precision}", found, f"≤ {tolerance:g}", passed)


def _outputs(step: Step) -> dict[str, Any]:
    # NumPy has no bfloat16.
    return {
        name: to_array(value.float() if getattr(value, "dtype", None) == torch.bfloat16 else value)
        for name, value in step().items()
    }


def compiled(options: Options) -> Iterator[Check]:
    """Time the detector's forward pass with and without `torch.compile`."""
    from benchmarks.inputs import our_model, random_images

    detector = our_model(options).detr
    images = random_images(options, 2, 800, 1333)

    def seconds() -> float:
        times = []
        with torch.no_grad(), autocast(options.torch_device):
            for _ in range(8):
                began = time.perf_counter()
                detector(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
        return statistics.median(times[3:])  # the first ones choose algorithms, or compile

    plain = seconds()
    compile_detector(detector)
    began = time.perf_counter()
    quick = seconds()
    total = time.perf_counter() - began
    found = f"{plain * 1000:.1f} ms, compiled {quick * 1000:.1f} ms, after {total:.0f} s of compiling"
    yield Check("detector, 2 images 800x1333, forward", found)


def benchmarks(options: Options) -> Iterator[Check]:
    """Time the networks beside their peers."""
    if find_spec("transformers") is None:
        yield Check("benchmarks", "left out: transformers is not installed")
        return
    for name in BENCHMARKS:
        result = run(importlib.import_module(f"benchmarks.{name}").BENCHMARK, options)
        seconds = zip(SIDES, (result.peer_s, result.ours_s), strict=True)
        each = ", ".join(f"{side} {value * 1000:.1f} ms, {result.peak_mb[side]:.0f} MiB" for side, value in seconds)
        yield Check(result.workload, f"{each}: {result.ratio:.1f} times as fast as {result.peer}")


def sample(project: Path, out: Path, device: str) -> Iterator[Check]:
    """Train on the sample, interrupt the training once it has a checkpoint, resume it, and evaluate."""
    if find_spec("kedro") is None:
        yield Check("training on the sample", "left out: Kedro is not installed")
        return
    folder = out / "project"
    copy_project(project, folder, data=())
    (folder / "data").mkdir()
    kedro = [sys.executable, "-m", "kedro", "run", "--env", "sample"]
    environment = os.environ | {"PYTHONPATH": str((folder / "src").resolve())}
    for pipeline in ("sample_data", "annotation_conversion"):
        subprocess.run([*kedro, "--pipelines", pipeline], cwd=folder, env=environment, check=True)
    pipelines = f"{RECIPE}_training,{RECIPE}_panoptic_evaluation"
    train = [*kedro, "--pipelines", pipelines, "--params", f"device={device}"]
    began = time.perf_counter()
    with subprocess.Popen(train, cwd=folder, env=environment) as first:
        while first.poll() is None and not (folder / f"data/06_models/{RECIPE}/last.pt").is_file():
            time.sleep(0.2)
        first.send_signal(signal.SIGINT)
    subprocess.run([*train, "--only-missing-outputs"], cwd=folder, env=environment, check=True)
    minutes = (time.perf_counter() - began) / 60
    quality = json.loads((folder / "data/08_reporting/panoptic_quality.json").read_text())
    pq, things, stuff = (quality[kind]["pq"] for kind in ("All", "Things", "Stuff"))
    found = f"PQ {pq:.1%} (things {things:.1%}, stuff {stuff:.1%}), {minutes:.1f} minutes with evaluation"
    yield Check("Panoptic-DeepLab on the sample, resumed", found, f"PQ ≥ {SAMPLE_PQ:.0%}", pq >= SAMPLE_PQ)


def table(checks: list[Check]) -> str:
    """Give the Markdown table for docs/performance.md."""
    verdicts = {None: "", True: "passed", False: "**failed**"}
    lines = [f"| {c.name} | {c.found} | {c.required} | {verdicts[c.passed]} |" for c in checks]
    return "\n".join(["| check | found | required | |", "|---|---|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    main()
