"""Stuff labelled by tiny models of `transformers` with random weights, a folder each."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.stuff.labeller import Fringe
from construction_panoptic.annotations.stuff.labelling import label_all
from construction_panoptic.annotations.stuff.registry import origin_of
from construction_panoptic.annotations.stuff.universal_labeller import UniversalLabeller, stuff_of_names
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.datasets import StuffLabelsDataset
from construction_panoptic.config.base import Execution, parse
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.parallel import model_pool
from tests.unit.stored import stored
from tests.unit.universal_models import FAMILIES, NAMES, write_model

pytestmark = pytest.mark.medium

SIDE, LONGEST, THRESHOLD = 64, 96, 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: write_model(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def taxonomy(repository: Path) -> Taxonomy:
    return Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))


def labeller(folder: Path, taxonomy: Taxonomy, **changed: Any) -> UniversalLabeller:
    settings: dict[str, Any] = {"threshold": THRESHOLD, "side": SIDE, "max_side": LONGEST, "device": "cpu"} | changed
    return UniversalLabeller(
        parse(StuffSettings, {"source": "universal", "weights": str(folder)} | settings, "stuff"), taxonomy
    )


def photograph(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def labels_of(labeller: UniversalLabeller, *images: NDArray[np.uint8], things: bool = False) -> list[NDArray[np.uint8]]:
    masks = [np.full(image.shape[:2], things) for image in images]
    return [maps.labels for maps in labeller.label(images, masks)]


def literal_labels(
    folder: Path, image: NDArray[np.uint8], size: tuple[int, int], padded: tuple[int, int], taxonomy: Taxonomy
) -> NDArray[np.uint8]:
    """The image resized and padded here, and each mask painted where it is free, the best first."""
    h, w = size
    resized = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(resized, size=size, mode="bilinear", antialias=True).round().clamp(0, 255)
    mean, std = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = F.pad(resized / 255, (0, padded[1] - w, 0, padded[0] - h))  # EoMT's padding is black
    pixels = (pixels - mean) / std
    model = transformers.AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    inputs = {"pixel_values": pixels}
    if model.config.model_type == "oneformer":
        tokens = transformers.AutoTokenizer.from_pretrained(folder)
        text = tokens(["the task is panoptic"], padding="max_length", max_length=12, truncation=True)
        inputs["task_inputs"] = torch.tensor(text["input_ids"]) * torch.tensor(text["attention_mask"])
    if model.config.model_type != "eomt":
        inputs["pixel_mask"] = torch.ones(1, *padded, dtype=torch.int64)
    with torch.no_grad():
        outputs = model(**inputs)
    probabilities = outputs.class_queries_logits[0].softmax(-1)
    found = []
    for query, masks in enumerate(outputs.masks_queries_logits[0]):
        score, label = probabilities[query].max(-1)
        mask = F.interpolate(masks[None, None, : -(-h // 4), : -(-w // 4)], size=size, mode="bilinear")[0, 0].sigmoid()
        if label < len(NAMES) and score > THRESHOLD and (mask >= 0.5).any():
            found.append((float(score * mask[mask >= 0.5].mean()), NAMES[int(label)], mask >= 0.5))
    assert len(found) > 2
    painted = torch.zeros(size, dtype=torch.int64)
    for place, (_, name, mask) in enumerate(sorted(found, key=lambda entry: -entry[0]), 1):
        free = mask & (painted == 0)
        if free.sum() >= (0.4 if name in ("person", "truck") else 0.2) * mask.sum():
            painted[free] = place
    stuff = {"person": "misc", "truck": "misc", "sky-other-merged": "sky", "Wall": "wall", "road": "ground"}
    stuff |= {"grass": taxonomy.names[taxonomy.stuff_id_of_name("grass-merged") or 0]}
    order = sorted(found, key=lambda entry: -entry[0])
    ids = [0] + [taxonomy.stuff_id(stuff[name]) if name in stuff else 0 for _, name, _ in order]
    best = Image.fromarray(np.array(ids, dtype=np.uint8)[painted.numpy()])
    return np.asarray(best.resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST))


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_equal_a_literal_merging(models: dict[str, Path], taxonomy: Taxonomy, family: str) -> None:
    image = photograph(1, 192, 240)
    size, padded = ((51, 64), (64, 64)) if family == "eomt" else ((64, 80), (64, 80))
    if family in ("mask2former", "maskformer"):  # sides become multiples of 32
        size = padded = 64, 96
    [labels] = labels_of(labeller(models[family], taxonomy), image)
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1
    expected = literal_labels(models[family], image, size, padded, taxonomy)
    # Rounding may turn a pixel on a border.
    assert (labels == expected).mean() > 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_any_sizes_is_cropped_and_has_their_sizes(
    models: dict[str, Path], taxonomy: Taxonomy, family: str
) -> None:
    images = [photograph(number, *size) for number, size in enumerate([(70, 100), (100, 60), (20, 300), (64, 64)])]
    single = labeller(models[family], taxonomy)
    alone = [labels_of(single, image)[0] for image in images]
    together = labels_of(single, *images)
    assert [labels.shape for labels in together] == [image.shape[:2] for image in images]
    if family == "eomt":  # its padding does not depend on the batch
        for one, of_batch in zip(alone, together, strict=True):
            assert (one == of_batch).mean() > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_what_things_explain_is_not_used(models: dict[str, Path], taxonomy: Taxonomy, family: str) -> None:
    cleaner, misc = labeller(models[family], taxonomy), taxonomy.stuff_id("misc")
    images = (photograph(seed, 96, 144) for seed in range(20))
    image, plain = next((image, labels) for image in images if misc in (labels := labels_of(cleaner, image)[0]))
    [maps] = cleaner.label([image], [np.ones((96, 144), dtype=bool)])
    assert not (maps.labels == misc).any()
    np.testing.assert_array_equal(maps.with_explained, plain)
    [all_used] = labels_of(labeller(models[family], taxonomy, explained_fraction=1.0), image, things=True)
    np.testing.assert_array_equal(all_used, plain)


def test_a_photograph_of_20_megapixels_has_its_own_size(models: dict[str, Path], taxonomy: Taxonomy) -> None:
    [labels] = labels_of(labeller(models["eomt"], taxonomy), np.zeros((3648, 5472, 3), np.uint8))
    assert labels.shape == (3648, 5472)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[pd.DataFrame, StoredTable]:
    """Five images of several sizes, with a thing in each."""
    rows: list[dict[str, Any]] = []
    things = []
    for number in range(5):
        height, width = 64, 60 + 10 * number
        path = tmp_path / f"{number}.png"
        Image.fromarray(photograph(number, height, width)).save(path)
        row: dict[str, Any] = {"key": f"yard/{number}.png", "location": str(path), "sha256": str(number)}
        rows.append(row | {"width": width, "height": height})
        code = segmentation_rle([[5, 5, 45, 5, 45, 55, 5, 55]], height, width)["counts"].decode()
        things.append({"key": row["key"], "is_thing": True, "rle": code})
    return pd.DataFrame(rows), stored(pd.DataFrame(things))


def label(
    tables: tuple[pd.DataFrame, StoredTable], labeller: UniversalLabeller, folder: Path, **execution: Any
) -> dict[str, bytes]:
    images, things = tables
    stuff = partial(label_all, images, things, labeller, Fringe([1], 2), execution=Execution(**execution))
    StuffLabelsDataset(filepath=str(folder)).save(stuff)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_label_as_one_and_a_second_run_goes_on(
    models: dict[str, Path],
    taxonomy: Taxonomy,
    tables: Any,
    tmp_path: Path,
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_pool, "IMAGES_IN_BLOCK", 2)
    expected = label(tables, labeller(models[family], taxonomy, batch_size=2), tmp_path / "one", workers=1)
    assert len({content for name, content in expected.items() if name.endswith(".png")}) > 3
    lost = next(name for name in expected if name.endswith(".png"))
    processes = labeller(models[family], taxonomy, batch_size=2)
    if family != "eomt":  # starting processes takes seconds
        assert label(tables, processes, tmp_path / "one", workers=1) == expected
        assert "_model" not in vars(processes), "it has labelled again"
        return
    assert label(tables, processes, tmp_path / "two", workers=2) == expected
    (tmp_path / "two" / lost).unlink()
    assert label(tables, processes, tmp_path / "two", workers=1) == expected
    assert label(tables, labeller(models[family], taxonomy), tmp_path / "two").keys() != expected.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "ray_cluster")
def test_ray_labels_as_one_process_does(
    models: dict[str, Path], taxonomy: Taxonomy, tables: Any, tmp_path: Path
) -> None:
    one, ray = (labeller(models["oneformer"], taxonomy) for _ in range(2))
    expected = label(tables, one, tmp_path / "one", workers=1)
    assert label(tables, ray, tmp_path / "ray", engine="ray", workers=2) == expected


def test_classes_go_by_names_in_any_spelling(taxonomy: Taxonomy, caplog: pytest.LogCaptureFixture) -> None:
    coco = [mapping.coco_name for mapping in taxonomy.coco_to_stuff]
    stuff_of, is_thing = stuff_of_names(dict(enumerate(coco)), taxonomy, "COCO's")
    assert [stuff_of[label] for label in range(len(coco))] == [taxonomy.stuff_id_of_name(name) for name in coco]
    assert [is_thing[label] for label in range(len(coco))] == [m.coco_id <= 90 for m in taxonomy.coco_to_stuff]
    short = [name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff") for name in coco]
    assert len(set(short)) == len(coco)
    assert stuff_of_names(dict(enumerate(short)), taxonomy, "short")[0] == stuff_of
    assert not caplog.records
    names = {3: "Sky Other_Merged", 5: "wall", 7: "spaceship", 8: "N/A"}
    stuff_of, is_thing = stuff_of_names(names, taxonomy, "some/model")
    assert stuff_of == {3: taxonomy.stuff_id("sky"), 5: taxonomy.stuff_id("wall")}
    assert is_thing == {3: False, 5: False, 7: False, 8: False}
    assert "2 of the 4 classes of some/model; what they cover is void: spaceship, N/A" in caplog.text
    with pytest.raises(CheckpointError, match=r"model: the taxonomy knows none of its classes \(LABEL_0, LABEL_1\)"):
        stuff_of_names({0: "LABEL_0", 1: "LABEL_1"}, taxonomy, "some/model")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# EoMT", "mit"),
        ("---\nlicense: other\nlicense_name: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("# no front matter", "unknown"),
        ("---\n: [\n---\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_is_told(
    models: dict[str, Path],
    taxonomy: Taxonomy,
    caplog: pytest.LogCaptureFixture,
    card: str | None,
    licence: str,
) -> None:
    readme = models["eomt"] / "README.md"
    readme.unlink(missing_ok=True)
    if card is not None:
        readme.write_text(card)
    with caplog.at_level("INFO"):
        labeller(models["eomt"], taxonomy)
    assert f"the licence of its weights: {licence}" in caplog.text
    origin = origin_of(StuffSettings(source="universal", weights=str(models["eomt"])))
    assert origin.pop("licence").startswith(licence)
    assert origin == {"source": "universal", "weights": str(models["eomt"])}


def test_what_cannot_be_a_labeller_is_refused(
    models: dict[str, Path], taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"no folder some/model, .*hf download some/model --local-dir"):
        labeller(Path("some/model"), taxonomy)
    with pytest.raises(ParameterError, match=r"stuff\.revision: .*eomt is a folder"):
        labeller(models["eomt"], taxonomy, revision="main")
    with pytest.raises(ParameterError, match=r"stuff: weights is detr-r101-panoptic, which is for source: detr"):
        parse(StuffSettings, {"source": "universal"}, "stuff")
    with pytest.raises(CheckpointError, match="cannot be loaded as a panoptic model"):
        labeller(tmp_path, taxonomy)
    transformers.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a resnet, which is none of eomt, "):
        labeller(tmp_path, taxonomy)


def test_weights_are_safetensors_and_complete(models: dict[str, Path], taxonomy: Taxonomy, tmp_path: Path) -> None:
    image = photograph(0, 64, 64)
    for path in models["mask2former"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    before = labeller(tmp_path, taxonomy).identity
    del state["class_predictor.weight"]
    save_file(state, weights, {"format": "pt"})
    incomplete = labeller(tmp_path, taxonomy)
    assert incomplete.identity != before
    with pytest.raises(CheckpointError, match=r"the weights lack class_predictor\.weight"):
        labels_of(incomplete, image)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        labels_of(labeller(tmp_path, taxonomy), image)
    weights.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        labels_of(labeller(tmp_path, taxonomy), image)
