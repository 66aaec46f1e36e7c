import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.precision import PRECISION_NAMES, average_precision

CATEGORIES = [{"id": i, "name": f"class {i}", "supercategory": "x", "isthing": int(i > 3)} for i in range(1, 8)]


def random_detection(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO detection truth with crowds, and box results around it, some of a wrong or an unknown class."""
    generator = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, 5)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(generator.integers(0, 8))):
            x, y, w, h = (int(v) for v in generator.integers((0, 0, 4, 4), (600, 450, 300, 300)))
            category = int(generator.integers(1, 6))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": int(w * h * generator.uniform(0.3, 1)),
                    "iscrowd": int(generator.random() < 0.1),
                }
            )
            for _ in range(int(generator.integers(0, 4))):
                box = np.array([x, y, w, h]) + generator.normal(0, 8, 4)
                wrong = generator.random() < 0.2
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": int(generator.integers(0, 8)) if wrong else category,
                        "bbox": [float(v) for v in (*box[:2], *np.maximum(box[2:], 1))],
                        "score": float(generator.random()),
                    }
                )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


@pytest.mark.parametrize("seed", range(12))
def test_both_engines_give_the_same_numbers(seed: int) -> None:
    truth, results = random_detection(seed)
    ours = average_precision(truth, results)
    reference = average_precision(truth, results, engine="pycocotools")
    for name in PRECISION_NAMES:
        assert ours[name] == pytest.approx(reference[name], abs=1e-12), name
    assert ours["per_class"] == pytest.approx(reference["per_class"], abs=1e-12)


def test_one_box_of_two_found_at_iou_060() -> None:
    """Two objects; one found with IoU 0.6, one not: recall 1/2 at the thresholds 0.50, 0.55 and 0.60."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 400, "height": 400}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 4, "bbox": box, "area": 10_000, "iscrowd": 0}
            for i, box in enumerate(([0, 0, 100, 100], [200, 200, 100, 100]), start=1)
        ],
        "categories": CATEGORIES,
    }
    results = [{"image_id": 1, "category_id": 4, "bbox": [0, 0, 100, 61], "score": 0.9}]
    precision = average_precision(truth, results)
    interpolated = 51 / 101  # precision is 1 at the recalls 0.00 … 0.50, 0 beyond
    assert precision["AP50"] == pytest.approx(interpolated)
    assert precision["AP75"] == 0
    assert precision["AP"] == pytest.approx(3 / 10 * interpolated)
    assert precision["AR100"] == pytest.approx(3 / 10 * 1 / 2)
    assert precision["APs"] == precision["APm"] == -1
    assert precision["APl"] == precision["AP"]
    assert precision["per_class"]["4"] == precision["AP"]
    assert precision["per_class"]["5"] == -1


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_no_result_at_all_scores_zero(engine: Any) -> None:
    truth, _ = random_detection(3)
    precision = average_precision(truth, [], engine=engine)
    assert precision["AP"] == 0
    present = {str(annotation["category_id"]) for annotation in truth["annotations"] if not annotation["iscrowd"]}
    assert {key for key, value in precision["per_class"].items() if value == 0} == present


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_truth_without_objects_has_no_score(engine: Any) -> None:
    truth, results = random_detection(3)
    precision = average_precision({**truth, "annotations": []}, results, engine=engine)
    assert [precision[name] for name in PRECISION_NAMES] == [-1] * 12


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_reads_files_prints_nothing_and_leaves_its_arguments_alone(
    engine: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    truth, results = random_detection(5)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_memory = average_precision(truth, results, engine=engine)
    from_files = average_precision(tmp_path / "truth.json", tmp_path / "results.json", engine=engine)
    assert from_files == from_memory
    assert capfd.readouterr() == ("", "")
    assert (truth, results) == random_detection(5)


def test_result_of_an_unknown_image_is_named() -> None:
    truth, _ = random_detection(0)
    results = [{"image_id": 77, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5}]
    with pytest.raises(InputDataError, match="image 77"):
        average_precision(truth, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [0, 0, float("nan"), 2]}, "finite"),
        ({"score": None}, "finite"),
    ],
)
def test_malformed_result_is_named(change: dict[str, Any], message: str) -> None:
    truth, _ = random_detection(0)
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5, **change}
    with pytest.raises(InputDataError, match=message):
        average_precision(truth, [result])


def test_panoptic_truth_is_refused() -> None:
    truth = {"images": [], "annotations": [{"image_id": 1, "segments_info": []}], "categories": []}
    with pytest.raises(InputDataError, match="COCO detection file"):
        average_precision(truth, [])


def test_what_is_no_list_is_named() -> None:
    truth, _ = random_detection(0)
    with pytest.raises(InputDataError, match="has no annotations; a COCO detection file is needed"):
        average_precision({**truth, "annotations": None}, [])
    with pytest.raises(InputDataError, match="must be a list of COCO box results"):
        average_precision(truth, {"annotations": []})  # type: ignore[arg-type]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"none\.json does not exist"):
        average_precision(tmp_path / "none.json", [])
