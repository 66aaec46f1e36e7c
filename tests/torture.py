"""Kills the main job at random moments, lets it go on each time, and compares what it made with an undisturbed run.

``python -m tests.torture --kills 20 --seed 1``: every artefact must be the same, byte for byte, except for the tables
of timings and the report that shows them, the journals of the conversion and the date in the head of the other reports;
and MLflow must have each number of the trainings once.
"""

import argparse
import logging
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from construction_panoptic.models.detr import build_detr_panoptic
from construction_panoptic.training.state import own_randomness
from tests.integration.pipelines.project import TINY, Project

logger = logging.getLogger("torture")

REPOSITORY = Path(__file__).parents[1]
ROUND = 8
"""Kills until a job is left to finish and compared; then another begins."""
LIMIT = 1200.0
"""Seconds for anything waited for; more is a hang."""
TIMED = ("timings.csv", "training_report.html", ".journal.jsonl")
DATE = re.compile(rb"<b>date</b>: [-0-9: ]+ UTC")
TIMED_METRICS = ("/time/", "images_per_second", "data_wait_share")
STARTED = "Using synchronous mode"
ENDED = "Where to look"
TRAININGS = {"detr.detection.train_detector": "detection", "detr.mask_head.train_mask_head": "mask_head"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

# All stages with much to interrupt: stuff labelled by a (random) network, several steps an epoch, often saved.
PARAMS = TINY | {
    "annotation_conversion.stuff.source": "detr",
    "annotation_conversion.stuff.weights": "data/01_raw/labeller.pt",
    "annotation_conversion.stuff.threshold": "0.0",
    "annotation_conversion.stuff.side": "64",
    "annotation_conversion.execution.workers": "2",
    "detection.epochs": "6",
    "detection.batch_size": "4",
    "detection.checkpoint_every_minutes": "0.002",
    "mask_head.epochs": "4",
    "mask_head.workers": "1",
    "mask_head.checkpoint_every_minutes": "0.002",
}


class TortureError(Exception):
    """A run hung, ended in another way than it should, or left something else behind."""


@dataclass(frozen=True)
class Step:
    """A node in the order of the run, the one before it, and the seconds that it took undisturbed."""

    node: str
    before: str | None
    seconds: float


@dataclass(frozen=True)
class Kill:
    """A signal at a share of a node's time; or, without one, when the node next writes a checkpoint."""

    step: Step
    number: signal.Signals
    share: float | None

    @property
    def delay(self) -> float | None:
        """Seconds after the node's beginning."""
        return None if self.share is None else self.share * self.step.seconds


def torture(folder: Path, choose: Callable[[list[Step]], list[list[Kill]]]) -> list[str]:
    """Run, kill and compare; gives the differences found, none where all is well.

    Args:
        folder: where the projects are made; it exists.
        choose: gives for the nodes of the undisturbed run the kills of each disturbed one, in order.
    """
    place = folder / "project"  # the same for all, since tables name the images by their path
    project = Project.create(place, REPOSITORY)
    project.run("--pipelines", "sample_data", params=PARAMS)
    save_labeller(place / PARAMS["annotation_conversion.stuff.weights"])
    steps = undisturbed_run(project)
    undisturbed = place.rename(folder / "undisturbed")
    differences = []
    for number, kills in enumerate(choose(steps), 1):
        project = Project.create(place, REPOSITORY)
        shutil.copytree(undisturbed / "data" / "01_raw", place / "data" / "01_raw")
        done: set[str] = set()
        for kill in kills:
            moment = "as it writes a checkpoint" if kill.delay is None else f"after {kill.delay:.2f} s"
            logger.info("job %d: %s in %s %s", number, kill.number.name, kill.step.node, moment)
            done |= disturbed_run(project, kill, done)
        logger.info("job %d: left to finish", number)
        project.run("--only-missing-outputs", params=PARAMS)
        disturbed = place.rename(folder / f"disturbed_{number}")
        found = compare(undisturbed, disturbed) + compare_metrics(undisturbed, disturbed)
        differences += [f"job {number}: {what}" for what in found]
    return differences


def random_jobs(steps: list[Step], count: int, seed: int) -> list[list[Kill]]:
    """Draw so many kills, in the order of the job; half of them in the trainings."""
    drawn = random.Random(seed)
    weights = [len(steps) / 4 if step.node in TRAININGS else 1.0 for step in steps]
    jobs = []
    for first in range(0, count, ROUND):
        chosen = sorted(drawn.choices(range(len(steps)), weights, k=min(ROUND, count - first)))
        writes = {index for index in chosen if steps[index].node in TRAININGS and drawn.random() < 1 / 3}
        shares = {index: None if index in writes else drawn.random() for index in chosen}
        jobs.append([Kill(steps[index], drawn.choice(SIGNALS), shares[index]) for index in chosen])
    return jobs


def save_labeller(path: Path) -> None:
    """Write the weights of a small network that has learned nothing, in the published layout."""
    with own_randomness(0):
        model = build_detr_panoptic(
            250, backbone="tiny", num_queries=20, hidden_dim=32, encoder_layers=1, decoder_layers=1, feedforward_dim=64
        )
    torch.save({"model": model.state_dict()}, path)


def undisturbed_run(project: Project) -> list[Step]:
    """Run the job and note when each node was done."""
    process, log = start(project)
    ends: dict[str, float] = {}
    began = None
    for text in watched(process, log):
        if began is None and STARTED in text:
            began = time.monotonic()
        for node in completed(text):
            ends.setdefault(node, time.monotonic())
    if process.returncode != 0 or began is None:
        raise TortureError(f"the undisturbed run failed:\n{log.read_text()[-3000:]}")
    nodes, times = list(ends), [began, *ends.values()]
    return [
        Step(node, nodes[index - 1] if index else None, times[index + 1] - times[index])
        for index, node in enumerate(nodes)
    ]


def disturbed_run(project: Project, kill: Kill, done: set[str]) -> set[str]:
    """Go on with the job, kill it, and give the nodes that it completed.

    Args:
        project: the project.
        kill: when and how.
        done: the nodes completed before.
    """
    process, log = start(project)
    begun: float | None = None
    writing = project.folder / "data" / "06_models" / TRAININGS.get(kill.step.node, "")
    for text in watched(process, log):
        if begun is None and (
            f"Completed node: {kill.step.before}\n" in text
            or (STARTED in text and (kill.step.before is None or kill.step.before in done))
        ):
            begun = time.monotonic()
        if begun is not None and (
            any(writing.glob(".*.tmp*")) if kill.delay is None else time.monotonic() >= begun + kill.delay
        ):
            break
    if process.poll() is None:
        # Ctrl-C reaches the whole process group, helpers that load data included.
        if kill.number == signal.SIGINT:
            os.killpg(process.pid, kill.number)
        else:
            process.send_signal(kill.number)
    try:
        code = process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise TortureError(f"a run did not end after {kill.number.name}:\n{log.read_text()[-3000:]}") from None
    # A process that has done all its work, and is on its way out, ends as Python does by default.
    by_default = kill.number == signal.SIGKILL or ENDED in log.read_text(errors="replace")
    if code not in (0, 128 + kill.number, *([-kill.number] if by_default else [])):
        raise TortureError(f"exit status {code} after {kill.number.name}:\n{log.read_text()[-3000:]}")
    return set(completed(log.read_text()))


def start(project: Project) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the job, or go on with it."""
    text = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    command = project.command("run", "--env", "sample", "--params", text, "--only-missing-outputs")
    log = project.folder / "run.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return process, log


def watched(process: subprocess.Popen[bytes], log: Path) -> Iterator[str]:
    """Give the log again and again until the process ends."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise TortureError(f"a run took more than {LIMIT:.0f} s:\n{log.read_text()[-3000:]}")
        yield lines(log)
        time.sleep(0.002)
    yield lines(log)


def lines(log: Path) -> str:
    return "".join(f"{line.rstrip()}\n" for line in log.read_text(errors="replace").splitlines())


def completed(text: str) -> list[str]:
    return re.findall(r"Completed node: (\S+)", text)


def compare(expected: Path, found: Path) -> list[str]:
    """Name the files under ``data`` that are missing, left over, or other bytes."""

    def files(folder: Path) -> dict[str, bytes]:
        paths = (path for path in (folder / "data").rglob("*") if path.is_file() and not path.name.endswith(TIMED))
        return {path.relative_to(folder).as_posix(): DATE.sub(b"", path.read_bytes()) for path in paths}

    one, other = files(expected), files(found)
    return [
        f"{name}: {'missing' if name not in other else 'left over' if name not in one else 'other bytes'}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def compare_metrics(expected: Path, found: Path) -> list[str]:
    """Name the numbers of the trainings that MLflow lacks, has more than once, or has with another value."""
    one, other = metrics(expected), metrics(found)
    wrong = [("missing", item) for item in one - other] + [("left over", item) for item in other - one]
    return [f"MLflow: {key} {value} of epoch {step}: {what}" for what, (key, step, value) in sorted(wrong)]


def metrics(project: Path) -> Counter[tuple[str, int, float]]:
    """Count the numbers of the trainings in MLflow, by name, epoch and value; times are left out."""
    query = (
        "select metrics.key, step, metrics.value from metrics join tags using (run_uuid) "
        "where tags.key = 'stage' and metrics.key like tags.value || '/%'"
    )
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        return Counter(row for row in database.execute(query) if not any(name in row[0] for name in TIMED_METRICS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the projects, kept afterwards")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with tempfile.TemporaryDirectory(prefix="torture_") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        differences = torture(folder, lambda steps: random_jobs(steps, options.kills, options.seed))
    for difference in differences:
        logger.error(difference)
    logger.info("%d kills, seed %d: %d differences", options.kills, options.seed, len(differences))
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
