import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from functools import partial

import pytest

from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel import workers as parallel
from construction_panoptic.parallel.workers import Workers, worker_count


def test_auto_is_one_process_a_usable_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert worker_count("auto") == 3
    assert worker_count(7) == 7
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert worker_count("auto") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert worker_count("auto") == 1


def test_processes_have_one_thread_each_and_none_is_a_fork_of_this_one() -> None:
    with Workers(2) as workers:
        assert list(workers.map(abs, [-1])) == [1]  # here, while the processes load
        assert workers._starting is not None
        wait([workers._starting])
        found = set(workers.map(_threads_and_parents, range(40)))
    assert {threads for threads, *_ in found} == {"1"}
    assert not {os.getpid()} & {number for _, *numbers in found for number in numbers}


def _threads_and_parents(number: int) -> tuple[str | None, int, int]:
    time.sleep(0.01)
    return os.environ.get("OMP_NUM_THREADS"), os.getpid(), os.getppid()


def test_processes_do_not_load_what_images_do_not_need() -> None:
    code = (
        "import sys; from importlib import import_module; import construction_panoptic.annotations\n"
        "from construction_panoptic.parallel.local import PRELOADED\n"
        "for name in PRELOADED: import_module(name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {f"construction_panoptic.annotations.{name}" for name in ("merging.merging", "stuff.ready")} <= set(loaded)
    assert not {"pandas", "pyarrow", "torch", "kedro", "mlflow"} & set(loaded)


def test_a_process_that_hangs_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(2) as workers:
        list(workers.map(abs, [-1]))
        assert workers._starting is not None
        wait([workers._starting])
        monkeypatch.setattr(parallel, "PATIENCE", 0.5)
        with pytest.raises(UserError, match=r"given none for .* minutes"):
            list(workers.map(time.sleep, [600] * 20))


@pytest.mark.medium
def test_processes_end_when_the_one_that_started_them_is_killed() -> None:
    code = (
        "import os, time\n"
        "from construction_panoptic.parallel.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        "        list(workers.map(time.sleep, [0]))\n"
        "        pool = workers._starting.result()\n"
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
        assert len(taken) <= 300 + 2 * 2 * parallel._BLOCK["local"]


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
        assert len(taken) <= 2 * parallel._BLOCK["ray"]
        assert [next(results) for _ in range(1099)] == list(range(1, 1100))
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)
        assert len(taken) <= 1100 + 2 * parallel._BLOCK["ray"]
        assert list(workers.map(len, ["none", "", "one"])) == [4, 0, 3]


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParameterError, match=r"'\.\[ray\]'"):
        Workers(2, "ray")
