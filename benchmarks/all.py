"""Run every benchmark and print one table: ``python -m benchmarks.all``."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measuring import options_of, parser, run, table, write

NAMES = (
    "frozen_step",
    "frozen_step_cached",
    "detection_step",
    "detector_inference",
    "panoptic_inference",
    "panoptic_deeplab_step",
    "panoptic_deeplab_inference",
    "post_processing",
    "loader",
    "quality",
    "conversion",
)
REPORTS = Path("data/08_reporting")


def main() -> None:
    arguments = parser("Run every benchmark.")
    arguments.add_argument("--out", type=Path, help=f"JSON file to write; {REPORTS}/benchmarks.json where there is one")
    chosen = arguments.parse_args()
    results, failed = [], []
    for name in NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            results.append(run(importlib.import_module(f"benchmarks.{name}").BENCHMARK, options_of(chosen)))
        except RuntimeError as error:  # the others can still be had
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
    print(json.dumps([asdict(result) for result in results]) if chosen.json else table(results))
    if chosen.out or REPORTS.is_dir():
        write(results, chosen.out or REPORTS / "benchmarks.json")
    if failed:
        sys.exit(f"without a result: {', '.join(failed)}")


if __name__ == "__main__":
    main()
