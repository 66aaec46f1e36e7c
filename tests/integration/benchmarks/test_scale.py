import json
from pathlib import Path

from benchmarks.scale import STEPS, Index, Measured, measure, synthetic_records, table


def test_every_step_runs_and_checks_its_result(tmp_path: Path) -> None:
    for step in STEPS.values():
        step(tmp_path, 3000)
    assert [record.key for record in Index(tmp_path / "index.jsonl")] == [r.key for r in synthetic_records(3000)]
    sides = [json.loads((tmp_path / f"panoptic_{side}.json").read_text()) for side in ("train", "val")]
    assert sum(len(side["annotations"]) for side in sides) == sum(len(side["images"]) for side in sides) == 3000
    assert {image["id"] for side in sides for image in side["images"]} == set(range(1, 3001))


def test_a_step_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    small = measure("PQ merging", tmp_path, 1000)
    assert small.processor > 0
    assert small.grown_mb >= 0
    whole = Measured("PQ merging", 10_000, 2.0, 1.0, 5.0)
    assert table([small, whole]).splitlines()[1].split()[2:6] == ["10000", "2.0", "1.0", "100.0"]
