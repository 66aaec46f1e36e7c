import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.stuff import detr_labeller
from construction_panoptic.annotations.stuff.detr_labeller import DetrLabeller, load_detr
from construction_panoptic.annotations.stuff.label_maps import LabelMap, decode_labels
from construction_panoptic.annotations.stuff.labeller import Fringe, ImageToLabel, StuffMaps, label_images
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import parse
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.errors import CheckpointError, InputDataError, ParameterError
from construction_panoptic.models.detr import DetrPanoptic, build_detr_panoptic
from construction_panoptic.models.preprocessing import resized_size

pytestmark = pytest.mark.medium

SIDE, MAX_SIDE, THRESHOLD = 64, 107, 0.6
LIKELY = [1, 118, 128, 154, 178, 184, 186, 187, 192, 199]  # COCO classes of ten stuff classes


@pytest.fixture(scope="module")
def taxonomy(repository: Path) -> Taxonomy:
    return Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))


def build(num_classes: int = 250) -> DetrPanoptic:
    """A small model of the published layout, with random weights that make its queries differ and be kept."""
    torch.manual_seed(3)
    model = build_detr_panoptic(
        num_classes,
        backbone="resnet18",
        num_queries=40,
        hidden_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        feedforward_dim=64,
    )
    torch.nn.init.normal_(model.detr.query_embed.weight, std=3)
    torch.nn.init.normal_(model.detr.class_embed.weight, std=2)
    torch.nn.init.constant_(model.detr.class_embed.bias, -100)
    with torch.no_grad():
        model.detr.class_embed.bias[[label for label in [*LIKELY, num_classes] if label <= num_classes]] = 0
        model.detr.input_proj.weight *= 3
        for name, parameter in model.detr.transformer.decoder.named_parameters():
            if name.endswith("multihead_attn.in_proj_weight"):
                parameter.mul_(3)
            elif name.endswith("linear2.weight"):
                parameter.mul_(0.3)
        model.bbox_attention.q_linear.weight *= 4
        model.mask_head.lay1.weight[:, 64:] *= 40
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DetrPanoptic:
    return build()


def photograph(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def network_input(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)


def literal_labels(model: DetrPanoptic, images: list[NDArray[np.uint8]], taxonomy: Taxonomy) -> list[NDArray[np.uint8]]:
    """All queries' masks of a padded batch, then one pixel at a time the class of the best kept query."""
    sizes = [resized_size((image.shape[0], image.shape[1]), SIDE, MAX_SIDE) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = torch.zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for number, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        batch[number, :, :h, :w] = network_input(image, (h, w))
        padding[number, :h, :w] = False
    with torch.no_grad():
        outputs = model(batch, padding)
    found = []
    for number, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        scores, labels = outputs["pred_logits"][number].softmax(-1).max(-1)
        kept = [query for query in range(len(labels)) if labels[query] != 250 and scores[query] > THRESHOLD]
        assert len(kept) > 3
        masks = outputs["pred_masks"][number, kept, : -(-h // 4), : -(-w // 4)]
        masks = F.interpolate(masks[None], size=(h, w), mode="bilinear")[0]
        stuff = torch.tensor([taxonomy.stuff_id_of_coco.get(int(labels[query]), 0) for query in kept])
        best = Image.fromarray(stuff[masks.argmax(0)].numpy().astype(np.uint8))
        found.append(np.asarray(best.resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)))
    return found


def labeller(model: DetrPanoptic, taxonomy: Taxonomy, **changed: Any) -> DetrLabeller:
    settings: dict[str, Any] = {"threshold": THRESHOLD, "side": SIDE, "max_side": MAX_SIDE, "device": "cpu"} | changed
    found = DetrLabeller(StuffSettings(**settings), taxonomy)
    with patch.object(detr_labeller, "load_detr", return_value=model):
        found.model  # noqa: B018  # which loads it
    return found


def label_files(labeller: DetrLabeller, paths: Iterable[Path]) -> Iterator[LabelMap]:
    """The way of a run: reading ahead, and by batches."""
    for stuff in label_images(labeller, Fringe([], 1), (ImageToLabel(p.name, str(p), size_of(p)) for p in paths)):
        assert isinstance(stuff.labels, bytes)
        yield decode_labels(stuff.labels)


def size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
    except OSError:
        return 1, 1
    return height, width


def maps_of(labeller: DetrLabeller, image: Path, things: NDArray[np.bool_] | None = None) -> StuffMaps:
    read = labeller.read(ImageToLabel("k", str(image), (0, 0)))
    [found] = labeller.label([read], [np.zeros(size_of(image), dtype=bool) if things is None else things])
    return found


def labels_of(labeller: DetrLabeller, image: NDArray[np.uint8], things: NDArray[np.bool_] | None = None) -> LabelMap:
    with NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(image).save(file.name)
        return maps_of(labeller, Path(file.name), things).labels


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 107), (100, 150), (311, 97), (20, 33), (90, 1000)])
def test_labels_equal_a_literal_panoptic_segmentation(
    model: DetrPanoptic, taxonomy: Taxonomy, height: int, width: int
) -> None:
    image = photograph(1, height, width)
    labels = labels_of(labeller(model, taxonomy), image)
    assert labels.dtype == np.uint8
    assert labels.shape == (height, width)
    assert len(np.unique(labels)) > 1
    [expected] = literal_labels(model, [image], taxonomy)
    # Rounding may turn a pixel on a border; segments of 4 pixels or fewer are dropped.
    assert (labels == expected).mean() > 0.98


def test_a_photograph_of_20_megapixels_has_its_own_size(model: DetrPanoptic, taxonomy: Taxonomy) -> None:
    labels = labels_of(labeller(model, taxonomy), np.zeros((3648, 5472, 3), np.uint8))
    assert labels.shape == (3648, 5472)


def test_batches_of_unequal_images_are_padded_and_cropped(
    model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path
) -> None:
    images = [photograph(number, 70, 70 + 8 * number) for number in range(5)]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    found = list(label_files(labeller(model, taxonomy, batch_size=3), paths))
    expected = literal_labels(model, images[:3], taxonomy) + literal_labels(model, images[3:], taxonomy)
    for labels, wanted in zip(found, expected, strict=True):
        assert labels.shape == wanted.shape
        assert (labels == wanted).mean() > 0.98
    single = labeller(model, taxonomy)
    for labels, path in zip(label_files(single, paths), paths, strict=True):
        assert np.array_equal(labels, maps_of(single, path).labels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_is_read(model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photograph(0, 50, 70)).convert(mode).save(path)
    [labels] = label_files(labeller(model, taxonomy), [path])
    assert labels.shape == (50, 70)


def test_turned_photographs_are_labelled_upright(model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph(0, 50, 70)).save(tmp_path / "a.png", exif=exif)
    [labels] = label_files(labeller(model, taxonomy), [tmp_path / "a.png"])
    assert labels.shape == (70, 50)


def test_no_kept_query_leaves_no_label(taxonomy: Taxonomy) -> None:
    model = build()
    torch.nn.init.zeros_(model.detr.class_embed.weight)
    assert not labels_of(labeller(model, taxonomy), photograph(0, 64, 80)).any()


def test_unmapped_categories_are_void(model: DetrPanoptic, taxonomy: Taxonomy) -> None:
    image = photograph(1, 100, 150)
    every = labels_of(labeller(model, taxonomy), image)
    present = int(np.bincount(every[every > 0]).argmax())
    name = taxonomy.names[present]
    fewer = Taxonomy(
        stuff=taxonomy.stuff,
        things=taxonomy.things,
        coco_to_stuff=[mapping for mapping in taxonomy.coco_to_stuff if mapping.stuff != name],
    )
    assert np.array_equal(labels_of(labeller(model, fewer), image), np.where(every == present, 0, every))


def test_an_unreadable_image_is_named(model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(photograph(0, 50, 70)).save(tmp_path / "good.png")
    found = label_files(labeller(model, taxonomy), [tmp_path / "good.png", tmp_path / "bad.jpg"])
    assert next(found).shape == (50, 70)
    with pytest.raises(InputDataError, match=r"bad\.jpg"):
        next(found)


def test_bad_settings_are_refused(model: DetrPanoptic, taxonomy: Taxonomy) -> None:
    for wrong in ({"threshold": 1.0}, {"threshold": -0.1}, {"side": 0}, {"side": 2000}, {"batch_size": 0}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            parse(StuffSettings, wrong, "stuff")
    with pytest.raises(CheckpointError, match=r"65 classes.*COCO category 200"):
        labels_of(labeller(build(65), taxonomy), photograph(0, 64, 80))
    with pytest.raises(InputDataError, match="coco_to_stuff is empty"):
        labeller(model, Taxonomy(stuff=taxonomy.stuff, things=taxonomy.things))


def test_a_checkpoint_file_becomes_its_labeller(model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    sizes: dict[str, Any] = {"threshold": THRESHOLD, "side": SIDE, "max_side": MAX_SIDE}
    loaded = DetrLabeller(StuffSettings(weights=str(tmp_path / "weights.pth"), device="cpu", **sizes), taxonomy)
    image = photograph(1, 100, 150)
    labels = labels_of(loaded, image)
    assert len(np.unique(labels)) > 2
    assert np.array_equal(labels, labels_of(labeller(model, taxonomy), image))


def test_dilation_follows_the_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_queries": 4, "hidden_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    state = build_detr_panoptic(250, feedforward_dim=16, num_heads=4, **small).state_dict()

    def stride(name: str) -> int:
        torch.save(state, tmp_path / name)
        model = load_detr(str(tmp_path / name))
        return 64 // model.features(torch.zeros(1, 3, 64, 64)).projected.shape[-1]

    assert stride("detr-r50-dc5-panoptic-da08f1b1.pth") == 16
    assert stride("detr-r50-panoptic.pth") == 32


def test_checkpoints_that_cannot_label_are_refused(model: DetrPanoptic, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"detr-r50 has no masks.*detr-r50-panoptic"):
        load_detr("detr-r50")
    with pytest.raises(CheckpointError, match="there is no file"):
        load_detr(str(tmp_path / "none.pth"))
    torch.save(model.detr.state_dict(), tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=r"detector\.pth: not a DETR panoptic checkpoint"):
        load_detr(str(tmp_path / "detector.pth"))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("mask_head")}
    torch.save(state, tmp_path / "no_masks.pth")
    with pytest.raises(CheckpointError, match=r"no_masks\.pth: .*mask_head\.lay1\.weight is missing"):
        load_detr(str(tmp_path / "no_masks.pth"))


@pytest.fixture
def thing_model() -> DetrPanoptic:
    """As `build`, but most of what it sees are COCO things."""
    model = build()
    with torch.no_grad():
        model.detr.class_embed.bias[[3, 4, 6, 8]] = 1.0
    return model


def test_what_things_explain_goes_to_the_neighbours(thing_model: DetrPanoptic, taxonomy: Taxonomy) -> None:
    image = photograph(1, 100, 150)
    misc = taxonomy.stuff_id("misc")
    plain = labels_of(labeller(thing_model, taxonomy), image)
    others = plain != misc
    assert 0.1 < (~others).mean() < 0.999
    everywhere = np.ones((100, 150), dtype=bool)
    cleaned = labels_of(labeller(thing_model, taxonomy), image, everywhere)
    assert not (cleaned == misc).any()
    # Where no COCO thing was, nothing changes; where one was, another segment is: nothing is void.
    np.testing.assert_array_equal(cleaned[others], plain[others])
    assert (cleaned > 0).all()
    np.testing.assert_array_equal(
        labels_of(labeller(thing_model, taxonomy, explained_fraction=1.0), image, everywhere), plain
    )
    np.testing.assert_array_equal(
        labels_of(labeller(thing_model, taxonomy), image, np.zeros((100, 150), dtype=bool)), plain
    )


def test_the_fringe_is_measured_with_and_without(thing_model: DetrPanoptic, taxonomy: Taxonomy, tmp_path: Path) -> None:
    image = photograph(1, 100, 150)
    Image.fromarray(image).save(tmp_path / "a.png")
    misc = taxonomy.stuff_id("misc")
    assert misc is not None
    things = np.zeros((100, 150), dtype=bool)
    things[10:90, 10:140] = True
    around = np.zeros_like(things)
    around[7:93, 7:143] = True
    cleaner = labeller(thing_model, taxonomy)
    maps = maps_of(cleaner, tmp_path / "a.png", things)
    np.testing.assert_array_equal(maps.with_explained, labels_of(cleaner, image))
    code = segmentation_rle([[10, 10, 140, 10, 140, 90, 10, 90]], 100, 150)["counts"].decode()
    task = ImageToLabel("k", str(tmp_path / "a.png"), (100, 150), (code,))
    [stuff] = label_images(cleaner, Fringe([misc], 3), [task])
    assert isinstance(stuff.labels, bytes)
    np.testing.assert_array_equal(decode_labels(stuff.labels), maps.labels)
    assert stuff.fringe_before == (around & ~things & (maps.with_explained == misc)).sum() > 0
    assert stuff.fringe_after == (around & ~things & (maps.labels == misc)).sum() < stuff.fringe_before
