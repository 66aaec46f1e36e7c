import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from numpy.typing import NDArray
from PIL import Image

from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.stuff.detr_labeller import DetrLabeller
from construction_panoptic.annotations.stuff.label_maps import StuffOfImage, decode_labels
from construction_panoptic.annotations.stuff.labeller import Fringe, StuffLabeller, StuffMaps
from construction_panoptic.annotations.stuff.labelling import images_to_label, label_all
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.datasets import StuffLabelsDataset
from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.models.detr import build_detr_panoptic
from construction_panoptic.parallel import model_pool
from tests.unit.stored import stored

pytestmark = pytest.mark.medium

COUNT, BATCH = 7, 2
FRINGE = Fringe([1], 2)
Tables = tuple[pd.DataFrame, StoredTable]


class Darkness(StuffLabeller):
    """The least that a labeller can be: what is dark is class 1, the rest class 2; it counts what it has labelled."""

    def __init__(self, identity: str = "darkness", device: str | None = None, batch_size: int = BATCH) -> None:
        self.identity, self.device, self.batch_size = identity, device, batch_size
        self.labelled = 0

    def label(self, images: Sequence[NDArray[np.uint8]], things: Sequence[NDArray[np.bool_]]) -> list[StuffMaps]:
        self.labelled += len(images)
        found = [np.where(image.mean(axis=2) < 128, 1, 2).astype(np.uint8) for image in images]
        return [StuffMaps(np.where(mask, 0, labels), labels) for labels, mask in zip(found, things, strict=True)]


@pytest.fixture(scope="module")
def detr(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> DetrLabeller:
    """The labeller of a checkpoint, which loads it in any process."""
    torch.manual_seed(3)
    model = build_detr_panoptic(
        250, backbone="tiny", num_queries=20, hidden_dim=32, encoder_layers=1, decoder_layers=1, feedforward_dim=32
    )
    torch.nn.init.normal_(model.detr.query_embed.weight, std=3)
    torch.nn.init.normal_(model.detr.class_embed.weight, std=2)
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    settings = StuffSettings(
        weights=str(path), threshold=0.1, side=48, max_side=80, batch_size=BATCH, fringe_distance=2, device="cpu"
    )
    return DetrLabeller(settings, taxonomy)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Images of several sizes, so that batches are padded, and a thing in each."""
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        width, height = 60 + 10 * number, 64
        path = tmp_path / f"{number}.png"
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path)
        row: dict[str, Any] = {"key": f"yard/{number}.png", "location": str(path), "sha256": str(number)}
        rows.append(row | {"width": width, "height": height})
    codes = [segmentation_rle([[5, 5, 25, 5, 25, 25, 5, 25]], row["height"], row["width"]) for row in rows]
    annotations = [
        {"key": row["key"], "is_thing": True, "rle": code["counts"].decode()}
        for row, code in zip(rows, codes, strict=True)
    ]
    return pd.DataFrame(rows), stored(pd.DataFrame(annotations))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_labelling_goes_on_by_whole_batches(tables: Tables, tmp_path: Path) -> None:
    def run(folder: str, stop_at: int | None = None, **labeller: Any) -> int:
        darkness = Darkness(**labeller)

        def stopping(finished: Path) -> Iterator[StuffOfImage]:
            for number, item in enumerate(label_all(*tables, darkness, FRINGE, finished)):
                if number == stop_at:
                    raise RuntimeError("power cut")
                yield item

        StuffLabelsDataset(filepath=str(tmp_path / folder)).save(stopping)
        return darkness.labelled

    assert run("whole") == COUNT
    whole = files(tmp_path / "whole")
    assert len(whole) == COUNT + 2
    with pytest.raises(DatasetError, match="power cut"):
        run("parts", stop_at=3)
    # The second batch lacks an image.
    assert run("parts") == COUNT - BATCH
    assert files(tmp_path / "parts") == whole
    assert run("parts") == 0
    # Of an early batch one is lost, of a later one another is damaged.
    index = json.loads(whole["index.json"])
    (tmp_path / "parts" / index["yard/1.png"]).unlink()
    damaged_file = tmp_path / "parts" / index["yard/4.png"]
    content = bytearray(damaged_file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged_file.write_bytes(content)
    (tmp_path / "parts" / index["yard/6.png"]).write_bytes(whole[index["yard/6.png"]][:-20])
    assert run("parts") == 2 * BATCH + 1
    assert files(tmp_path / "parts") == whole
    assert run("parts", identity="other weights") == COUNT
    assert len(files(tmp_path / "parts")) == COUNT + 2, "the labels of the other weights are gone"


def labelled(tables: Tables, labeller: StuffLabeller, **execution: Any) -> Iterator[StuffOfImage]:
    return label_all(*tables, labeller, FRINGE, folder=Path("none"), execution=Execution(**execution))


@pytest.mark.usefixtures("one_thread")
def test_processes_label_as_one_does_up_to_an_image_that_cannot_be_read(
    tables: Tables, detr: DetrLabeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(labelled(tables, pickle.loads(pickle.dumps(detr)), workers=1))
    assert len({stuff.labels for stuff in expected}) > 3
    monkeypatch.setattr(model_pool, "IMAGES_IN_BLOCK", 3)
    Path(tables[0]["location"][COUNT - 1]).write_bytes(b"no image")
    found = labelled(tables, detr, workers=2)
    assert [next(found) for _ in range(COUNT - 1)] == expected[:-1]
    with pytest.raises(ImageError, match=rf"{COUNT - 1}\.png"):
        next(found)


class DyingOnce(DetrLabeller):
    """Its first process is gone."""

    dead: Path

    def label(self, *arguments: Any) -> list[StuffMaps]:
        if not self.dead.exists():
            self.dead.touch()
            os._exit(9)
        return super().label(*arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "ray_cluster")
def test_ray_labels_as_one_process_does_though_one_of_its_processes_dies(
    tables: Tables, detr: DetrLabeller, tmp_path: Path
) -> None:
    dying = pickle.loads(pickle.dumps(detr))
    dying.__class__, dying.dead = DyingOnce, tmp_path / "dead"
    assert list(labelled(tables, dying, engine="ray", workers=2)) == list(labelled(tables, detr, workers=1))
    assert dying.dead.exists()


def test_a_digest_tells_what_labels_depend_on(tables: Tables) -> None:
    images, annotations = tables[0], tables[1].frame()

    def digests(images: pd.DataFrame, annotations: pd.DataFrame, fringe: Fringe = FRINGE, **labeller: Any) -> list[str]:
        found = images_to_label(images, stored(annotations), Darkness(**labeller), fringe)
        return [image.digest for image in found]

    before = digests(images, annotations)
    assert len(set(before)) == COUNT
    assert digests(images.assign(location="elsewhere"), annotations) == before
    changed = annotations.copy()
    changed.loc[2, "rle"] = "another"
    other = images.copy()
    other.loc[4, "sha256"] = "y"
    for after, numbers in (
        (digests(images, changed), [2]),
        (digests(other, annotations), [4]),
        (digests(images, annotations[:0]), [*range(COUNT)]),
        (digests(images, annotations, identity="other"), [*range(COUNT)]),
        (digests(images, annotations, Fringe([1], 3)), [*range(COUNT)]),
    ):
        assert [n for n in range(COUNT) if after[n] != before[n]] == numbers


def test_the_identity_tells_checkpoints_and_settings_apart(repository: Path, tmp_path: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    path = tmp_path / "model.pth"
    identities = []
    for content, threshold in ((b"1", 0.5), (b"22", 0.5), (b"22", 0.6)):
        path.write_bytes(content)
        identities.append(DetrLabeller(StuffSettings(weights=str(path), threshold=threshold), taxonomy).identity)
    assert len(set(identities)) == 3


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_labeller_of_a_few_lines_is_enough(tables: Tables, device: str | None, workers: int) -> None:
    found = list(labelled(tables, Darkness(device=device), workers=workers))
    assert [stuff.key for stuff in found] == tables[0]["key"].tolist()
    for stuff, location in zip(found, tables[0]["location"], strict=True):
        assert isinstance(stuff.labels, bytes)
        labels = decode_labels(stuff.labels)
        dark = np.asarray(Image.open(location)).mean(axis=2) < 128
        thing = np.zeros_like(dark)
        thing[5:25, 5:25] = True
        around = np.zeros_like(dark)
        around[3:27, 3:27] = True
        np.testing.assert_array_equal(labels, np.where(thing, 0, np.where(dark, 1, 2)))
        assert stuff.fringe_before == stuff.fringe_after == (around & ~thing & dark).sum()


def test_images_of_which_nothing_is_known_are_named(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    class Unsure(Darkness):
        def label(self, images: Any, things: Any) -> Any:
            return [None] * len(images)

    found = list(label_all(*tables, Unsure(), FRINGE, folder=Path("none"), execution=ONE_PROCESS))
    assert {stuff.labels for stuff in found} == {None}
    assert "7 of 7 images have no stuff prediction" in caplog.text
    assert "yard/0.png, " in caplog.text
