import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from PIL import Image

from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.stuff.detr_labeller import DetrStuffLabeller, load_labeller
from construction_panoptic.annotations.stuff.fringe import StuffOfImage
from construction_panoptic.annotations.stuff.ready import encode_labels
from construction_panoptic.annotations.stuff.relabelling import checkpoint_identity, image_digests, label_unfinished
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.folders import StuffLabelsDataset, finished_stuff
from construction_panoptic.catalog.journal import Journal
from construction_panoptic.config.base import Execution
from construction_panoptic.models.detr import build_detr_panoptic
from construction_panoptic.parallel import model_pool

COUNT, BATCH = 7, 2


@pytest.fixture(scope="module")
def make(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], DetrStuffLabeller]:
    """Loads the labeller of a checkpoint, in other processes too."""
    torch.manual_seed(3)
    model = build_detr_panoptic(
        250,
        backbone="tiny",
        num_queries=20,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=1,
        feedforward_dim=32,
    )
    torch.nn.init.normal_(model.detr.query_embed.weight, std=3)
    torch.nn.init.normal_(model.detr.class_embed.weight, std=2)
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return partial(load_labeller, path, taxonomy, threshold=0.1, side=48, max_side=80, batch_size=BATCH)


@pytest.fixture(scope="module")
def labeller(make: Callable[[], DetrStuffLabeller]) -> DetrStuffLabeller:
    return make()


@pytest.fixture
def tables(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images of several sizes, so that batches are padded, and a thing in each."""
    rows = []
    for number in range(COUNT):
        width, height = 60 + 10 * number, 64
        path = tmp_path / f"{number}.png"
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path)
        row = {"key": f"yard/{number}.png", "location": str(path), "sha256": str(number)}
        rows.append(row | {"width": width, "height": height})
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    annotations = [
        {
            "key": row["key"],
            "is_thing": True,
            "rle": segmentation_rle(square, row["height"], row["width"])["counts"].decode(),
        }
        for row in rows
    ]
    return pd.DataFrame(rows), pd.DataFrame(annotations)


def test_an_interrupted_labelling_goes_on_by_whole_batches(
    tables: tuple[pd.DataFrame, pd.DataFrame], labeller: DetrStuffLabeller, tmp_path: Path
) -> None:
    calls = []

    def make() -> DetrStuffLabeller:
        calls.append(1)
        return labeller

    def run(folder: str, common: str = "x", stop_at: int | None = None) -> dict[str, bytes]:
        dataset = StuffLabelsDataset(filepath=str(tmp_path / folder))
        finished = partial(finished_stuff, Journal(tmp_path / folder))
        stuff = label_unfinished(*tables, finished, make, batch_size=BATCH, common=common)

        def stopping() -> Iterator[StuffOfImage]:
            for number, item in enumerate(stuff):
                if number == stop_at:
                    raise RuntimeError("power cut")
                yield item

        dataset.save(stopping())
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    whole = run("whole")
    assert len(whole) == COUNT + 2
    assert len({content for name, content in whole.items() if name.endswith(".png")}) > 3
    with pytest.raises(DatasetError, match="power cut"):
        run("parts", stop_at=3)
    assert len(calls) == 2
    assert run("parts") == whole
    assert len(calls) == 3
    assert run("parts") == whole
    assert len(calls) == 3, "all is done, so that no network is needed"
    # Of the batch of the images 2 and 3 one was lost: both are labelled again, those before are not.
    (tmp_path / "parts" / next(name for name in whole if name.endswith(".png"))).unlink()
    assert run("parts") == whole
    assert len(calls) == 4
    assert run("parts", common="other weights").keys() == whole.keys()
    assert len(calls) == 5


def labelled(
    tables: tuple[pd.DataFrame, pd.DataFrame], make: Callable[[], DetrStuffLabeller], **execution: Any
) -> Iterator[StuffOfImage]:
    for stuff in label_unfinished(
        *tables, _nothing, make, batch_size=BATCH, common="x", execution=Execution(**execution)
    ):
        assert stuff.labels is not None
        file = stuff.labels if isinstance(stuff.labels, bytes) else encode_labels(stuff.labels)
        yield stuff._replace(labels=file)


def _nothing(_key: str, _digest: str) -> None:
    return None


@pytest.mark.usefixtures("one_thread")
def test_processes_label_as_one_does_up_to_an_image_that_cannot_be_read(
    tables: tuple[pd.DataFrame, pd.DataFrame],
    make: Callable[[], DetrStuffLabeller],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = list(labelled(tables, make, workers=1))
    monkeypatch.setattr(model_pool, "IMAGES_IN_BLOCK", 3)
    Path(tables[0]["location"][COUNT - 1]).write_bytes(b"no image")
    found = labelled(tables, make, workers=2)
    assert [next(found) for _ in range(COUNT - 1)] == expected[:-1]
    with pytest.raises(ImageError, match=rf"{COUNT - 1}\.png"):
        next(found)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "ray_cluster")
def test_ray_labels_as_one_process_does_though_one_of_its_processes_dies(
    tables: tuple[pd.DataFrame, pd.DataFrame], make: Callable[[], DetrStuffLabeller], tmp_path: Path
) -> None:
    dying = partial(_after_a_death, tmp_path / "dead", make)
    assert list(labelled(tables, dying, engine="ray", workers=2)) == list(labelled(tables, make, workers=1))
    assert (tmp_path / "dead").exists()


def _after_a_death(dead: Path, make: Callable[[], DetrStuffLabeller]) -> DetrStuffLabeller:
    if not dead.exists():
        dead.touch()
        os._exit(9)
    return make()


def test_a_digest_tells_what_labels_depend_on(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    images, annotations = tables
    before = list(image_digests(images, annotations, "x"))
    assert len(set(before)) == COUNT
    assert list(image_digests(images, annotations, "x")) == before

    changed = annotations.copy()
    changed.loc[2, "rle"] = "0"
    other = images.copy()
    other.loc[4, "sha256"] = "y"
    for tables_after, numbers in (
        ((images, changed), [2]),
        ((other, annotations), [4]),
        ((images, changed[:0]), [*range(7)]),
    ):
        after = list(image_digests(*tables_after, "x"))
        assert [n for n in range(COUNT) if after[n] != before[n]] == numbers


def test_a_checkpoint_file_is_told_by_its_content(tmp_path: Path) -> None:
    assert checkpoint_identity("detr-r50-panoptic") == ["detr-r50-panoptic"]
    path = tmp_path / "model.pth"
    path.write_bytes(b"1")
    first = checkpoint_identity(str(path))
    path.write_bytes(b"22")
    assert checkpoint_identity(str(path)) != first
