import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.conversion_scale import convert, table, write_exports


def test_each_size_is_converted_and_measured(tmp_path: Path) -> None:
    write_exports(tmp_path, 12)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # else the peak is the tests'
        size = pool.submit(convert, tmp_path, 12).result()
    assert size.annotations == 120
    assert len(size.curve) == 12
    assert size.processor > 0
    assert size.total == sum(size.stages.values()) > 0
    assert size.peak_mb > size.base_mb > 50
    sides = [json.loads((tmp_path / "out" / f"detection_{side}.json").read_text()) for side in ("train", "val")]
    assert sum(len(side["images"]) for side in sides) == 12
    assert table([size, size]).count("12") >= 2
