"""Every benchmark runs at a tiny size, its two sides agree, and none of them needs Kedro or MLflow."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.all import NAMES
from benchmarks.measuring import SIDES, Options, Result, compare, run, table, to_array, write
from benchmarks.post_processing import BENCHMARK

ROOT = Path(__file__).parents[3]
NEED_TRANSFORMERS = set(NAMES) - {"post_processing", "loader", "quality", "conversion"}
# A pixel between two masks can go to either where their logits differ in the last bit; colours are averages of
# pixels that PIL and torch round differently.
TOLERANCE = {"panoptic_inference": 1e-3, "loader": 1e-3}


@pytest.mark.parametrize("name", NAMES)
def test_sides_agree(name: str, tmp_path: Path) -> None:
    if name in NEED_TRANSFORMERS:
        pytest.importorskip("transformers")
    benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    options = Options(threads=1, device="cpu", small=True, folder=str(tmp_path))
    if benchmark.prepare is not None:
        benchmark.prepare(options)

    peer, ours = ({key: to_array(value) for key, value in benchmark.sides[side](options)().items()} for side in SIDES)

    differences = compare(peer, ours)
    assert benchmark.name == name
    assert max(differences.values()) <= TOLERANCE.get(name, 1e-5), differences


def test_run_times_both_sides_in_processes_of_their_own() -> None:
    result = run(BENCHMARK, Options(threads=1, device="cpu", small=True, seconds=0.0))

    assert result.benchmark == "post_processing"
    assert result.rounds == 1
    assert result.max_abs_diff == 0
    assert result.peer_s > 0
    assert result.ours_s > 0
    assert result.ratio == pytest.approx(result.peer_s / result.ours_s)
    assert all(peak > 50 for peak in result.peak_mb.values())


def test_command_prints_json_and_imports_neither_kedro_nor_mlflow() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['post_processing', '--json', '--small', '--threads', '1', '--seconds', '0']\n"
        "runpy.run_module('benchmarks.post_processing', run_name='__main__')\n"
        f"for name in {NAMES!r}: __import__(f'benchmarks.{{name}}')\n"
        "heavy = {module.split('.')[0] for module in sys.modules} & {'kedro', 'mlflow', 'kedro_mlflow'}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert {"workload", "peer", "peer_s", "ours_s", "ratio", "max_abs_diff", "peak_mb"} <= printed.keys()
    assert set(printed["peak_mb"]) == {"peer", "ours"}


def test_differences_are_the_largest_of_numbers_and_the_share_of_labels() -> None:
    first = {"numbers": np.array([1.0, 2.0]), "labels": np.array([1, 2, 3, 4]), "shapes": np.zeros(2)}
    second = {"numbers": np.array([1.5, 2.0]), "labels": np.array([1, 2, 3, 9]), "shapes": np.zeros(3)}
    assert compare(first, second) == {"numbers": 0.5, "labels": 0.25, "shapes": float("inf")}
    assert compare({"a": np.array([np.nan])}, {"a": np.array([np.nan])}) == {"a": float("inf")}
    with pytest.raises(ValueError, match="same outputs"):
        compare({"a": np.zeros(1)}, {"b": np.zeros(1)})


def test_table_and_file(tmp_path: Path) -> None:
    result = Result("loader", "twenty images", "literal", 3.0, 1.0, 3.0, 1e-7, {"peer": 900.0, "ours": 300.0})
    lines = table([result]).splitlines()
    assert lines[2].split() == ["loader", "literal", "3", "1", "3.0", "900", "300", "1.0e-07"]
    write([result], tmp_path / "benchmarks.json")
    assert json.loads((tmp_path / "benchmarks.json").read_text())[0]["ratio"] == 3.0
