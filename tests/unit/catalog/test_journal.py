import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.catalog.journal import Journal
from tests.unit.catalog.converting import convert

pytestmark = pytest.mark.medium

TAXONOMY = {
    "stuff": [{"id": n, "name": name, "color": [n, 0, 0]} for n, name in ((1, "sky"), (2, "ground"))],
    "things": [{"id": 7, "name": "pump", "color": [0, 9, 0]}],
    "coco_to_stuff": [],
}
COUNT = 12


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"first")
    (tmp_path / "b.png").write_bytes(b"second")
    journal = Journal(tmp_path / "entry.jsonl")
    journal.add("a", "1", [tmp_path / "a.png"], {"x": 1})
    journal.add("b", "2", [tmp_path / "b.png"], [2])
    journal.add("c", "", [], None)
    return tmp_path / "entry.jsonl"


def test_what_is_unchanged_is_found(entry: Path) -> None:
    journal = Journal(entry)
    assert journal.find("a", "1") == {"x": 1}
    assert journal.find("b", "2") == [2]
    assert journal.find("a", "2") is None
    assert journal.find("c", "") is None
    assert Journal(entry.with_name("other.jsonl")).find("a", "1") is None
    (entry.parent / "a.png").write_bytes(b"longer")
    (entry.parent / "b.png").unlink()
    assert journal.find("a", "1") is None
    assert journal.find("b", "2") is None


def test_a_damaged_line_is_no_item(entry: Path) -> None:
    path = Journal(entry).path
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        journal = Journal(entry)
        assert (journal.find("a", "1"), journal.find("b", "2")) in (({"x": 1}, None), (None, [2]), (None, None))


def test_half_a_line_is_no_item_and_later_ones_count(entry: Path) -> None:
    path = Journal(entry).path
    path.write_bytes(path.read_bytes()[:-3])
    assert Journal(entry).find("b", "2") is None
    Journal(entry).add("a", "3", [], "new")
    Journal(entry).add("d", "4", [], None)
    assert Journal(entry).find("a", "3") == "new"
    assert Journal(entry).find("a", "1") is None
    Journal(entry).keep(["a"])
    assert [json.loads(line.partition("\t")[0])["data"] for line in path.read_text().splitlines()] == ["new"]
    path.write_text('7\n{"key": 1}\nnot JSON\n')
    assert Journal(entry).find("a", "3") is None


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An export of as many images, in part not RGB, with two things each."""
    folder = tmp_path / "raw" / "pump"
    (folder / "images").mkdir(parents=True)
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if number % 4 == 0 else "RGB").save(folder / f"images/{number:02d}.jpg")
    write_annotations(folder, [5.0] * COUNT)
    (tmp_path / "taxonomy.json").write_text(json.dumps(TAXONOMY))
    return folder.parent


def write_annotations(folder: Path, lefts: list[float]) -> None:
    images = [{"id": n, "file_name": f"{n:02d}.jpg", "width": 40, "height": 30} for n in range(len(lefts))]
    annotations = [
        {"id": 2 * n + i, "image_id": n, "category_id": 1, "segmentation": [[x, 5, x + 9, 5, x + 9, 15 + i, x, 15]]}
        for n, left in enumerate(lefts)
        for i, x in enumerate((left, left + 4))
    ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "pump"}]}
    (folder / "coco.json").write_text(json.dumps(document))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def test_a_killed_conversion_goes_on_where_it_was(raw: Path, tmp_path: Path, repository: Path) -> None:
    taxonomy, target = tmp_path / "taxonomy.json", tmp_path / "target"
    code = "import sys; from pathlib import Path; from tests.unit.catalog.converting import convert; "
    code += "convert(*map(Path, sys.argv[1:]), kill_at=7)"
    command = [sys.executable, "-c", code, str(raw), str(target), str(taxonomy)]
    assert subprocess.run(command, cwd=repository, check=False).returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (target / "panoptic").glob("[!.]*")}
    assert len(before) == 7
    assert not (target / "converted.jsonl").exists()

    made = convert(raw, target, taxonomy)
    assert made == [f"pump/{number:02d}.jpg" for number in range(7, COUNT)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(convert(raw, tmp_path / "whole", taxonomy)) == COUNT
    assert content(target) == content(tmp_path / "whole")


def test_only_what_has_changed_is_made_again(raw: Path, tmp_path: Path) -> None:
    taxonomy, target = tmp_path / "taxonomy.json", tmp_path / "target"
    assert len(convert(raw, target, taxonomy)) == COUNT
    assert convert(raw, target, taxonomy) == []

    write_annotations(raw / "pump", [5.0] * 3 + [6.0] + [5.0] * (COUNT - 4))
    assert convert(raw, target, taxonomy) == ["pump/03.jpg"]
    Image.new("RGB", (40, 30), "red").save(raw / "pump/images/05.jpg")
    assert convert(raw, target, taxonomy) == ["pump/05.jpg"]
    (target / "panoptic/pump__06.png").write_bytes(b"x")
    (target / "images/pump__08.jpg").unlink()
    assert convert(raw, target, taxonomy) == ["pump/06.jpg", "pump/08.jpg"]
    assert len(convert(raw, target, taxonomy, overlap="smallest_on_top")) == COUNT

    write_annotations(raw / "pump", [5.0] * 3)
    assert convert(raw, target, taxonomy, overlap="smallest_on_top") == []
    assert convert(raw, tmp_path / "whole", taxonomy, overlap="smallest_on_top") != []
    assert content(target) == content(tmp_path / "whole")
    taxonomy.write_text(json.dumps(TAXONOMY | {"things": [{"id": 8, "name": "pump", "color": [0, 9, 0]}]}))
    assert len(convert(raw, target, taxonomy, overlap="smallest_on_top")) == 3
    changed = convert(raw, target, taxonomy, overlap="smallest_on_top", overlap_stuff="last_on_top")
    assert len(changed) == 3
