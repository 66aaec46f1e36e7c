import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from construction_panoptic.config.base import Execution
from construction_panoptic.errors import InputDataError, UserError
from construction_panoptic.evaluation import quality
from construction_panoptic.evaluation.quality import panoptic_quality
from tests.unit.evaluation.pairs import CATEGORIES, PanopticPair, entry, load_ids, make_random_pair, save_ids


def literal_quality(pair: PanopticPair) -> dict[str, Any]:
    """Panoptic quality by its definition: sets of pixels, one pair of segments at a time."""
    tp, fp, fn = ({c["id"]: 0 for c in pair.truth["categories"]} for _ in range(3))
    iou_sum = {c["id"]: 0.0 for c in pair.truth["categories"]}
    predictions = {a["image_id"]: a for a in pair.predictions["annotations"]}
    for truth in pair.truth["annotations"]:
        predicted = predictions[truth["image_id"]]
        true_ids = load_ids(pair.truth_folder / truth["file_name"])
        predicted_ids = load_ids(pair.prediction_folder / predicted["file_name"])
        matched: set[int] = set()
        for segment in truth["segments_info"]:
            if segment["iscrowd"]:
                continue
            category, pixels, found = segment["category_id"], true_ids == segment["id"], False
            for candidate in predicted["segments_info"]:
                if candidate["category_id"] != category:
                    continue
                others = (predicted_ids == candidate["id"]) & (true_ids != 0)
                iou = (pixels & others).sum() / (pixels | others).sum()
                if iou > 0.5:
                    tp[category] += 1
                    iou_sum[category] += iou
                    matched.add(candidate["id"])
                    found = True
            fn[category] += not found
        for candidate in predicted["segments_info"]:
            if candidate["id"] in matched:
                continue
            pixels = predicted_ids == candidate["id"]
            ignored = true_ids == 0
            crowds = [
                s["id"] for s in truth["segments_info"] if s["iscrowd"] and s["category_id"] == candidate["category_id"]
            ]
            for identity in crowds[-1:]:  # COCO has at most one crowd segment a class in an image
                ignored = ignored | (true_ids == identity)
            fp[candidate["category_id"]] += not (pixels & ignored).sum() / pixels.sum() > 0.5
    return _averages(pair.truth["categories"], tp, fp, fn, iou_sum)


def _averages(
    categories: list[dict[str, Any]],
    tp: dict[int, int],
    fp: dict[int, int],
    fn: dict[int, int],
    iou_sum: dict[int, float],
) -> dict[str, Any]:
    per_class = {}
    for identity in (category["id"] for category in categories):
        size = tp[identity] + fp[identity] / 2 + fn[identity] / 2
        per_class[identity] = {
            "pq": iou_sum[identity] / size if size else 0.0,
            "sq": iou_sum[identity] / tp[identity] if tp[identity] else 0.0,
            "rq": tp[identity] / size if size else 0.0,
        }
    result: dict[str, Any] = {"per_class": per_class}
    for name, kinds in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        rows = [
            per_class[c["id"]]
            for c in categories
            if c["isthing"] in kinds and tp[c["id"]] + fp[c["id"]] + fn[c["id"]] > 0
        ]
        result[name] = {key: float(np.mean([r[key] for r in rows])) if rows else None for key in ("pq", "sq", "rq")}
        result[name]["n"] = len(rows)
    return result


@pytest.fixture
def coco_examples(real_data: Path) -> Path:
    """Two COCO images with their panoptic annotations."""
    return real_data / "coco_panoptic_examples"


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    for split in ("All", "Things", "Stuff"):
        assert ours[split] == pytest.approx(expected[split], abs=1e-12), split
    for identity, row in expected["per_class"].items():
        for key, value in row.items():
            assert ours["per_class"][str(identity)][key] == pytest.approx(value, abs=1e-12), (identity, key)
    assert len(ours["per_class"]) == len(expected["per_class"])


needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("panopticapi") is None, reason="panopticapi is not installed"
)


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_definition(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed, noise=0.2 + seed / 60)
    assert_same(panoptic_quality(*pair.arguments), literal_quality(pair))


@needs_reference
@pytest.mark.parametrize("seed", range(30))
def test_both_engines_give_the_same(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    before = copy.deepcopy(pair)
    assert_same(panoptic_quality(*pair.arguments), panoptic_quality(*pair.arguments, engine="panopticapi"))
    assert pair == before


def single(tmp_path: Path, truth: Any, predicted: Any, crowd: set[int] = frozenset()) -> PanopticPair:  # type: ignore[assignment]
    """One image; id maps as (array, id → class)."""
    annotations = [
        entry(1, tmp_path / side, np.asarray(ids), classes, crowd if side == "truth" else set())
        for side, (ids, classes) in (("truth", truth), ("predictions", predicted))
    ]
    return PanopticPair(
        {"annotations": annotations[:1], "categories": CATEGORIES},
        {"annotations": annotations[1:]},
        tmp_path / "truth",
        tmp_path / "predictions",
    )


def test_a_case_worked_out_by_hand(tmp_path: Path) -> None:
    """Class 1: IoU 3/4. Class 5: one of two objects found exactly, one prediction with no object."""
    truth = np.array([[1, 1, 1, 1, 2, 2, 3, 3]])
    predicted = np.array([[1, 1, 1, 4, 2, 2, 0, 0]])
    pair = single(tmp_path, (truth, {1: 1, 2: 5, 3: 5}), (predicted, {1: 1, 2: 5, 4: 5}))
    quality = panoptic_quality(*pair.arguments)
    assert quality["Stuff"] == {"pq": 0.75, "sq": 0.75, "rq": 1, "n": 1}
    assert quality["Things"] == {"pq": 0.5, "sq": 1, "rq": 0.5, "n": 1}
    assert quality["All"] == {"pq": 0.625, "sq": 0.875, "rq": 0.75, "n": 2}
    assert quality["per_class"]["5"] == {
        "pq": 0.5, "sq": 1, "rq": 0.5, "isthing": True, "present": True, "tp": 1, "fp": 1, "fn": 1,
    }  # fmt: skip
    assert quality["per_class"]["2"] == {
        "pq": 0, "sq": 0, "rq": 0, "isthing": False, "present": False, "tp": 0, "fp": 0, "fn": 0,
    }  # fmt: skip


def test_iou_of_exactly_one_half_is_no_match(tmp_path: Path) -> None:
    pair = single(tmp_path, ([[1, 1, 2, 2]], {1: 1, 2: 2}), ([[1, 3, 2, 2]], {1: 1, 2: 2, 3: 3}))
    assert panoptic_quality(*pair.arguments)["per_class"]["1"]["tp"] == 0


def test_void_and_crowd_are_not_held_against_a_prediction(tmp_path: Path) -> None:
    """Segment 1 runs into void, 2 lies on void alone, 3 on a crowd segment of its class: none is an error."""
    truth = np.array([[1, 1, 0, 0, 0, 0, 9, 9]])
    predicted = np.array([[1, 1, 1, 2, 2, 2, 3, 3]])
    pair = single(tmp_path, (truth, {1: 4, 9: 5}), (predicted, {1: 4, 2: 6, 3: 5}), crowd={9})
    quality = panoptic_quality(*pair.arguments)
    assert quality["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert not quality["per_class"]["5"]["present"]


def test_a_class_that_is_only_predicted_counts_with_zero(tmp_path: Path) -> None:
    pair = single(tmp_path, ([[1, 1, 1, 1]], {1: 1}), ([[1, 1, 1, 2]], {1: 1, 2: 6}))
    quality = panoptic_quality(*pair.arguments)
    assert quality["All"]["n"] == 2
    assert quality["Things"] == {"pq": 0, "sq": 0, "rq": 0, "n": 1}
    assert quality["per_class"]["6"]["fp"] == 1


def test_nothing_predicted_scores_zero(random_pair: Callable[..., PanopticPair], tmp_path: Path) -> None:
    pair = random_pair(4)
    empty = [
        entry(a["image_id"], tmp_path, 0 * load_ids(pair.truth_folder / a["file_name"]), {}, set())
        for a in pair.truth["annotations"]
    ]
    quality = panoptic_quality(pair.truth, pair.truth_folder, {"annotations": empty}, tmp_path)
    present = {str(s["category_id"]) for a in pair.truth["annotations"] for s in a["segments_info"] if not s["iscrowd"]}
    assert quality["All"] == {"pq": 0, "sq": 0, "rq": 0, "n": len(present)}
    assert {key for key, row in quality["per_class"].items() if row["present"]} == present


def test_only_void_on_both_sides_and_one_kind_of_class_have_no_mean(tmp_path: Path) -> None:
    none = {"pq": None, "sq": None, "rq": None, "n": 0}
    pair = single(tmp_path / "void", ([[0, 0]], {}), ([[0, 0]], {}))
    assert panoptic_quality(*pair.arguments)["All"] == none
    pair = single(tmp_path / "stuff", ([[1, 1]], {1: 2}), ([[1, 1]], {1: 2}))
    quality = panoptic_quality(*pair.arguments)
    assert quality["Things"] == none
    assert quality["All"] == quality["Stuff"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}


@needs_reference
def test_the_reference_engine_has_the_same_answer_where_there_is_no_thing(tmp_path: Path) -> None:
    pair = single(tmp_path, ([[1, 1]], {1: 2}), ([[1, 0]], {1: 2}))
    assert panoptic_quality(*pair.arguments, engine="panopticapi") == panoptic_quality(*pair.arguments)


def test_reads_files_and_prints_nothing(
    random_pair: Callable[..., PanopticPair], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = random_pair(2)
    (tmp_path / "truth.json").write_text(json.dumps(pair.truth))
    (tmp_path / "predictions.json").write_text(json.dumps(pair.predictions))
    quality = panoptic_quality(
        tmp_path / "truth.json", pair.truth_folder, str(tmp_path / "predictions.json"), pair.prediction_folder
    )
    assert quality == panoptic_quality(*pair.arguments)
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    assert capfd.readouterr() == ("", "")


def test_coco_truth_against_itself_is_perfect(coco_examples: Path) -> None:
    truth, folder = coco_examples / "panoptic_examples.json", coco_examples / "panoptic_examples"
    quality = panoptic_quality(truth, folder, truth, folder)
    categories = {s["category_id"] for a in json.loads(truth.read_text())["annotations"] for s in a["segments_info"]}
    assert quality["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": len(categories)}
    assert len(quality["per_class"]) == 133


def test_coco_truth_perturbed_equals_the_definition(coco_examples: Path, tmp_path: Path) -> None:
    """Shift each map by 12 pixels and give one segment a wrong class."""
    truth = json.loads((coco_examples / "panoptic_examples.json").read_text())
    annotations = []
    for annotation in truth["annotations"]:
        ids = np.roll(load_ids(coco_examples / "panoptic_examples" / annotation["file_name"]), (12, 12), (0, 1))
        classes = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        classes[next(iter(classes))] = 1
        written = entry(annotation["image_id"], tmp_path, ids, classes, set())
        annotations.append(written)
    pair = PanopticPair(truth, {"annotations": annotations}, coco_examples / "panoptic_examples", tmp_path)
    quality = panoptic_quality(*pair.arguments)
    assert_same(quality, literal_quality(pair))
    assert 0.2 < quality["All"]["pq"] < 0.95


def break_(pair: PanopticPair, what: str) -> None:
    truth, predicted = pair.truth["annotations"][0], pair.predictions["annotations"][0]
    match what:
        case "image missing":
            pair.predictions["annotations"].pop(0)
        case "no predictions":
            pair.predictions["annotations"].clear()
        case "no truth":
            pair.truth["annotations"] = []
        case "no list":
            pair.predictions["annotations"] = None
        case "no isthing":
            pair.truth["categories"] = [{"id": 1, "name": "a"}]
        case "detection file":
            truth.pop("segments_info")
        case "not in json":
            predicted["segments_info"].pop()
        case "not in png":
            predicted["segments_info"].append({"id": 5, "category_id": 1})
        case "unknown class":
            predicted["segments_info"][0]["category_id"] = 99
        case "no png":
            (pair.prediction_folder / predicted["file_name"]).unlink()
        case "size":
            save_ids(pair.prediction_folder / predicted["file_name"], np.zeros((3, 3), np.int64))
            predicted["segments_info"] = []


@pytest.mark.parametrize("engine", ["hotcoco", pytest.param("panopticapi", marks=needs_reference)])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("image missing", "1 of the .* the first being image 1"),
        ("no predictions", "no prediction for"),
        ("no truth", "at least one"),
        ("no list", "has no annotations; a COCO panoptic file is needed"),
        ("no isthing", "category 1 has no isthing"),
        ("detection file", "image 1 has no segments_info; a COCO panoptic file is needed"),
        ("not in json", "(?i)image (with ID )?1"),
        ("not in png", "(?i)image (with ID )?1"),
        ("unknown class", "unknown category_id 99"),
        ("no png", r"1\.png"),
        ("size", "cannot be evaluated"),
    ],
)
def test_bad_input_is_named(engine: Any, what: str, message: str, random_pair: Callable[..., PanopticPair]) -> None:
    pair = copy.deepcopy(random_pair(1))
    break_(pair, what)
    with pytest.raises(InputDataError, match=message):
        panoptic_quality(*pair.arguments, engine=engine)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"none\.json does not exist"):
        panoptic_quality(tmp_path / "none.json", tmp_path, {}, tmp_path)


def test_reference_engine_that_is_not_installed_says_how_to_install_it(
    random_pair: Callable[..., PanopticPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    monkeypatch.delitem(sys.modules, "panopticapi.evaluation", raising=False)
    with pytest.raises(UserError, match=r"pip install '\.\[reference\]'"):
        panoptic_quality(*random_pair(1).arguments, engine="panopticapi")


@pytest.fixture
def many(tmp_path: Path) -> tuple[dict[str, Any], str, dict[str, Any], str]:
    """The images of several pairs in one truth and one file of predictions, with the paths of their PNGs."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    predictions: dict[str, Any] = {"annotations": []}
    for number in range(6):
        pair = make_random_pair(tmp_path / str(number), number)
        for whole, part, folder in (
            (truth, pair.truth, pair.truth_folder),
            (predictions, pair.predictions, pair.prediction_folder),
        ):
            for annotation in part["annotations"]:
                place = {
                    "image_id": 100 * number + annotation["image_id"],
                    "file_name": str(folder / annotation["file_name"]),
                }
                whole["annotations"].append({**annotation, **place})
    return truth, "", predictions, ""


@pytest.mark.usefixtures("ready_processes")
def test_processes_give_the_same_to_the_last_bit(many: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_BLOCK", 2)
    expected, two = panoptic_quality(*many), Execution(workers=2)
    assert sum(row["tp"] for row in expected["per_class"].values()) > 10
    assert panoptic_quality(*many, execution=two) == expected
    many[2]["annotations"][-1]["segments_info"][0]["category_id"] = 99
    with pytest.raises(InputDataError, match=r"the predictions cannot be evaluated .*unknown category_id 99"):
        panoptic_quality(*many, execution=two)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_same_to_the_last_bit(many: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_BLOCK", 2)
    assert panoptic_quality(*many, execution=Execution(engine="ray", workers=2)) == panoptic_quality(*many)
