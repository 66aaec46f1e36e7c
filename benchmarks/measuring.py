"""Running a workload's two sides in turn, each in a process of its own, and reporting on them.

A process a side makes the peaks of memory comparable: each is that of one implementation alone, with Python,
its libraries, its weights and its inputs. The sides never work at the same time.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory import peak_memory

Outputs = Mapping[str, Any]
"""By name: tensors, arrays or numbers, to be compared with the other side's of the same name."""

Step = Callable[[], Outputs]

SIDES = ("peer", "ours")
TURN_SECONDS = 2.0
"""A turn of a side is so long at least, in runs that follow each other as they do in use."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        threads: threads of torch and of the libraries below it.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        small: a tiny workload, to try the benchmark itself.
        seconds: start no further round after so many seconds of rounds; there is at least one.
        rounds: most turns of each side.
        detr: a checkout of facebookresearch/detr, to be the peer where the benchmark has one for it.
        folder: where `Benchmark.prepare` has put the inputs.
    """

    threads: int = 2
    device: str = "auto"
    small: bool = False
    seconds: float = 30.0
    rounds: int = 9
    detr: str = ""
    folder: str = ""

    @property
    def torch_device(self) -> torch.device:
        """The device to compute on."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")


@dataclass(frozen=True)
class Benchmark:
    """A workload that two implementations do.

    Attributes:
        name: the module's name in this package.
        workload: what is done, in one line; what ``small`` does is smaller.
        peer: name of the other implementation.
        sides: for ``peer`` and ``ours``, a function that sets everything up and gives the step to be timed.
        published: the peer in place of ``sides["peer"]`` when there is a checkout of the published implementation.
        prepare: writes input files for both sides into `Options.folder`, once.
    """

    name: str
    workload: str
    peer: str
    sides: Mapping[str, Callable[[Options], Step]]
    published: Callable[[Options], Step] | None = None
    prepare: Callable[[Options], None] | None = None

    def side(self, name: str, options: Options) -> Step:
        """Set up a side and give its step."""
        if name == "peer" and options.detr and self.published is not None:
            return self.published(options)
        return self.sides[name](options)

    def peer_name(self, options: Options) -> str:
        """Name of the other implementation that ``options`` choose."""
        return "facebookresearch/detr" if options.detr and self.published is not None else self.peer


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes:
        benchmark: its name.
        workload: what was done.
        peer: the other implementation.
        peer_s: seconds of the peer, the median of the rounds.
        ours_s: the same of this project.
        ratio: peer_s / ours_s.
        max_abs_diff: largest of ``differences``.
        peak_mb: peak of the resident memory of each side's process, MiB; on CUDA that of torch's memory.
        differences: by output, the largest absolute difference; of integers (labels, segment ids), the share
            of elements that differ.
        rounds: timed runs of each side.
        threads: threads of each side.
        device: device of both.
    """

    benchmark: str
    workload: str
    peer: str
    peer_s: float
    ours_s: float
    ratio: float
    max_abs_diff: float
    peak_mb: dict[str, float]
    differences: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    threads: int = 0
    device: str = ""


def run(benchmark: Benchmark, options: Options) -> Result:
    """Run both sides in turn: once to warm up, whose outputs are compared, then in timed rounds."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder, contextlib.ExitStack() as stack:
        options = replace(options, folder=folder)
        if benchmark.prepare is not None:
            benchmark.prepare(options)
        sides = {side: stack.enter_context(_serving(benchmark.name, side, options)) for side in SIDES}
        outputs = {side: _ask(connection, "outputs") for side, connection in sides.items()}
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        start = time.perf_counter()
        while not times["peer"] or (
            len(times["peer"]) < options.rounds and time.perf_counter() - start < options.seconds
        ):
            for side, connection in sides.items():
                times[side].append(_ask(connection, "time"))
        peaks = {side: round(_ask(connection, "peak_mb"), 1) for side, connection in sides.items()}
    peer_s, ours_s = (statistics.median(times[side]) for side in SIDES)
    differences = compare(outputs["peer"], outputs["ours"])
    return Result(
        benchmark=benchmark.name,
        workload=benchmark.workload + (" (made small)" if options.small else ""),
        peer=benchmark.peer_name(options),
        peer_s=peer_s,
        ours_s=ours_s,
        ratio=peer_s / ours_s,
        max_abs_diff=max(differences.values()),
        peak_mb=peaks,
        differences=differences,
        rounds=len(times["peer"]),
        threads=options.threads,
        device=options.torch_device.type,
    )


def compare(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Difference of each output, see `Result`; infinite where shapes differ or a value is no number.

    Raises:
        ValueError: the two have not the same outputs, or none.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(f"the sides must give the same outputs, not {sorted(first)} and {sorted(second)}")
    return {name: _difference(first[name], second[name]) for name in first}


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        return float("inf")
    if not first.size:
        return 0.0
    if np.issubdtype(first.dtype, np.integer) and np.issubdtype(second.dtype, np.integer):
        return float((first != second).mean())
    largest = float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())
    return largest if np.isfinite(largest) else float("inf")


@contextlib.contextmanager
def _serving(name: str, side: str, options: Options) -> Iterator[Connection]:
    """A process that holds one side ready; it ends with the context."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, side, options), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()
            process.join()


def _ask(connection: Connection, request: str) -> Any:
    connection.send(request)
    try:
        failed, answer = connection.recv()
    except EOFError:
        raise RuntimeError("a side ended without an answer; was it killed for its memory?") from None
    if failed:
        raise RuntimeError(f"a side failed:\n{answer}")
    return answer


def _serve(connection: Connection, name: str, side: str, options: Options) -> None:
    torch.set_num_threads(options.threads)
    handle: Callable[[str], Any] | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if handle is None:
                benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
                handle = _handler(benchmark.side(side, options), options)
            connection.send((False, handle(request)))
        except Exception:
            connection.send((True, traceback.format_exc()))


def _handler(step: Step, options: Options) -> Callable[[str], Any]:
    cuda = options.torch_device.type == "cuda"

    def timed() -> tuple[float, Outputs]:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        outputs = step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, outputs

    def handle(request: str) -> Any:
        if request == "outputs":
            return {key: to_array(value) for key, value in timed()[1].items()}
        if request == "time":
            return statistics.mean(_until(TURN_SECONDS, lambda: timed()[0]))
        if cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return peak_memory()

    return handle


def _until(seconds: float, measure: Callable[[], float]) -> list[float]:
    """Measure until it took so long, once at least."""
    times = [measure()]
    while sum(times) < seconds:
        times.append(measure())
    return times


def to_array(value: Any) -> np.ndarray:
    """An output as an array, on the host."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def table(results: list[Result]) -> str:
    """A table of results, one a line."""
    head = ["benchmark", "peer", "peer s", "ours s", "ratio", "peer MB", "ours MB", "largest difference"]
    rows = [
        [
            r.benchmark,
            r.peer,
            f"{r.peer_s:.4g}",
            f"{r.ours_s:.4g}",
            f"{r.ratio:.1f}",
            *(f"{r.peak_mb[side]:.0f}" for side in SIDES),
            f"{r.max_abs_diff:.1e}",
        ]
        for r in results
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments.add_argument("--threads", type=int, default=Options.threads, help="threads of each side")
    arguments.add_argument("--device", choices=("auto", "cpu", "cuda"), default=Options.device)
    arguments.add_argument("--small", action="store_true", help="a tiny workload, to try the benchmark itself")
    arguments.add_argument("--seconds", type=float, default=Options.seconds, help="time for the timed rounds, about")
    arguments.add_argument("--rounds", type=int, default=Options.rounds, help="most timed runs of each side")
    arguments.add_argument(
        "--detr", default=Options.detr, metavar="FOLDER", help="a checkout of facebookresearch/detr to compare with"
    )
    return arguments


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that the command line states."""
    names = ("threads", "device", "small", "seconds", "rounds", "detr")
    return Options(**{name: getattr(arguments, name) for name in names})


def main(benchmark: Benchmark) -> None:
    """Run a benchmark as a command and print what it found."""
    arguments = parser(f"{benchmark.workload}. Peer: {benchmark.peer}.").parse_args()
    result = run(benchmark, options_of(arguments))
    print(json.dumps(asdict(result)) if arguments.json else f"{result.workload}\n\n{table([result])}")


def write(results: list[Result], path: Path) -> None:
    """Save results as JSON."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
