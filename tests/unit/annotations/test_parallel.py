import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations.formats.coco_entries import EntryError
from construction_panoptic.annotations.formats.cvat import read_exports
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.merging.masks import MaskError
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel import workers as parallel
from construction_panoptic.parallel.workers import Engine, Workers, worker_count


def test_auto_is_at_least_one() -> None:
    assert worker_count("auto") >= 1
    assert worker_count(3) == 3


@pytest.mark.parametrize("kind", [ImageError, EntryError, MaskError])
def test_errors_come_back_from_other_processes(kind: type[ImageError]) -> None:
    again = pickle.loads(pickle.dumps(kind("too_large", "a.jpg: too large")))
    assert (type(again), again.reason, str(again)) == (kind, "too_large", "a.jpg: too large")


def test_processes_have_one_thread_each_and_none_is_a_fork_of_this_one() -> None:
    with Workers(2) as workers:
        assert list(workers.map(abs, [-1])) == [1]  # here, while the processes load
        assert workers._pool is not None
        wait([workers._pool])
        found = set(workers.map(_threads_and_parents, range(40)))
    assert {threads for threads, *_ in found} == {"1"}
    assert not {os.getpid()} & {number for _, *numbers in found for number in numbers}


def _threads_and_parents(number: int) -> tuple[str | None, int, int]:
    time.sleep(0.01)
    return os.environ.get("OMP_NUM_THREADS"), os.getpid(), os.getppid()


def test_processes_do_not_load_what_images_do_not_need() -> None:
    code = "import construction_panoptic.parallel.preloaded, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "construction_panoptic.annotations.merging.merging" in loaded
    assert not {"pandas", "pyarrow", "torch", "kedro", "mlflow"} & set(loaded)


def test_a_process_that_hangs_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(2) as workers:
        list(workers.map(abs, [-1]))
        assert workers._pool is not None
        wait([workers._pool])
        monkeypatch.setattr(parallel, "PATIENCE", 0.5)
        with pytest.raises(UserError, match=r"given none for .* minutes"):
            list(workers.map(time.sleep, [600] * 20))


def test_processes_end_when_the_one_that_started_them_is_killed() -> None:
    code = (
        "import os, time\n"
        "from construction_panoptic.parallel.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        "        list(workers.map(time.sleep, [0]))\n"
        "        pool = workers._pool.result()\n"
        "        list(workers.map(time.sleep, [0.01] * 40))\n"
        "        print(*pool._processes, flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        processes = [int(number) for number in parent.stdout.readline().split()]
        parent.kill()
    assert len(processes) == 2
    end = time.monotonic() + 60
    while any(_lives(process) for process in processes):
        assert time.monotonic() < end, "they wait for work for ever"
        time.sleep(0.1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_order_errors_and_the_number_in_flight() -> None:
    taken = []

    def items() -> Iterator[str]:
        for number in range(900):
            taken.append(number)
            yield "x" if number == 300 else str(number)

    with Workers(2) as workers:
        results = workers.map(partial(int, base=10), items())
        assert next(results) == 0
        assert [next(results) for _ in range(299)] == list(range(1, 300))
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)
        assert len(taken) <= 300 + 2 * 2 * parallel._CHUNK


@pytest.fixture
def raw(make_export: Callable[..., Path], make_document: Callable[..., dict[str, Any]]) -> Path:
    """Two exports, one an archive, of nine images each, and two that are missing."""
    photos = tuple(f"{number}.jpg" for number in range(9))
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(11)]
    [annotation] = make_document()["annotations"]
    annotations = [annotation | {"id": n, "image_id": n % 11} for n in range(30)]
    document = make_document(images=images, annotations=annotations)
    make_export("pump", document, photos=photos, archive=True)
    return make_export("pipes", document, photos=photos).parent


def stuff(key: str) -> np.ndarray:
    return np.full((30, 40), 1 + ("pump" in key), dtype=np.uint8)


def check_same_as_serial(raw: Path, taxonomy: Taxonomy, engine: Engine) -> None:
    one = read_exports(raw, taxonomy)
    two = read_exports(raw, taxonomy, workers=2, engine=engine)
    for name in ("images", "annotations", "rejected", "repaired", "inputs"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    assert len(one.rejected) > 0

    serial = list(merge_images(one.images, one.annotations, stuff, taxonomy))
    parallel = list(merge_images(one.images, one.annotations, stuff, taxonomy, workers=2, engine=engine))
    assert len(serial) == 18
    assert serial == parallel
    damaged = Path(next(location for location in one.images["location"] if "::" not in location))
    damaged.write_bytes(b"no image")
    with pytest.raises(ImageError):
        list(merge_images(one.images, one.annotations, stuff, taxonomy, workers=2, engine=engine))


def test_processes_give_the_same_as_one(raw: Path, site_taxonomy: Taxonomy) -> None:
    check_same_as_serial(raw, site_taxonomy, "local")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_same_as_one_process(raw: Path, site_taxonomy: Taxonomy) -> None:
    check_same_as_serial(raw, site_taxonomy, "ray")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_order_errors_and_the_number_in_flight_with_ray() -> None:
    taken = []

    def items() -> Iterator[str]:
        for number in range(5000):
            taken.append(number)
            yield "x" if number == 1100 else str(number)

    with Workers(2, "ray") as workers:
        results = workers.map(partial(int, base=10), items())
        assert next(results) == 0
        assert len(taken) <= 2 * 256
        assert [next(results) for _ in range(1099)] == list(range(1, 1100))
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)
        assert len(taken) <= 6 * 256
        assert list(workers.map(len, ["none", "", "one"])) == [4, 0, 3]


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, raw: Path, site_taxonomy: Taxonomy) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParameterError, match=r"'\.\[ray\]'"):
        read_exports(raw, site_taxonomy, engine="ray")
