from pathlib import Path

import numpy as np
import pytest

from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.options import fold_split, listed_split
from construction_panoptic.annotations.split.splitting import audit_split
from construction_panoptic.errors import InputDataError


def data(count: int) -> tuple[list[str], list[int], list[set[int]]]:
    generator = np.random.default_rng(1)
    keys = [f"k{number:03d}" for number in range(count)]
    groups = [number // 2 for number in range(count)]
    return keys, groups, [set(generator.choice(6, 2, replace=False).tolist()) for _ in keys]


@pytest.mark.parametrize(("count", "folds"), [(60, 5), (60, 2), (6, 3), (20, 10)])
def test_every_image_is_in_one_fold(count: int, folds: int) -> None:
    keys, groups, classes = data(count)
    sides = []
    for fold in range(1, folds + 1):
        table = fold_split(keys, groups, classes, folds=folds, fold=fold, seed=3)
        assert table["key"].tolist() == sorted(keys)
        assert table.groupby("group")["split"].nunique().max() == 1
        sides.append((table["split"] == "val").to_numpy())
    val = np.array(sides)
    assert (val.sum(axis=0) == 1).all()
    assert (val.sum(axis=1) >= 1).all()
    assert val.sum(axis=1).max() <= 1.5 * count / folds + 2


def test_folds_do_not_depend_on_the_order() -> None:
    keys, groups, classes = data(40)
    order = np.random.default_rng(0).permutation(40).tolist()
    one = fold_split(keys, groups, classes, folds=4, fold=3)
    other = fold_split(
        [keys[i] for i in order], [groups[i] for i in order], [classes[i] for i in order], folds=4, fold=3
    )
    assert one.equals(other)


def test_impossible_folds_are_refused() -> None:
    keys, groups, classes = data(6)
    with pytest.raises(InputDataError, match="there are 3"):
        fold_split(keys, groups, classes, folds=4, fold=1)


@pytest.mark.parametrize("header", ["key,split,comment", "key,split"])
def test_a_list_is_respected(tmp_path: Path, header: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also one of which the rows, as some programs write them, end in a comma and the header does not."""
    path = tmp_path / "mine.csv"
    path.write_text(f"{header}\nb,val,\na,train,\nrejected,val,\nc,train,\n")
    table = listed_split(path, ["c", "a", "b"], [2, 0, 1])
    assert table.to_dict("list") == {"key": ["a", "b", "c"], "group": [0, 1, 2], "split": ["train", "val", "train"]}
    assert "1 listed image(s) are not in the data set: rejected" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key\na\n", "column 'split'"),
        ("key,split\na,train\nb,val\na,val\n", "'a' is listed twice"),
        ("key,split\na,train\nb,test\n", "'test'"),
        ("key,split\na,train\n", "not listed: b"),
        ("key,split\na,train\nb,train\n", "side val"),
        ("", "cannot be read"),
        ('key,split\n"a,train\n', "cannot be read"),
    ],
)
def test_a_wrong_list_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(InputDataError, match=message) as caught:
        listed_split(path, ["a", "b"], [0, 1])
    assert "mine.csv" in str(caught.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"none\.csv"):
        listed_split(tmp_path / "none.csv", ["a"], [0])


def test_a_list_that_leaks_is_refused_by_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("key,split\ns/a,train\ns/b,val\ns/c,val\n")
    segment = Segment(1, 1, 4, (0, 0, 2, 2), "", 0, None)
    hashes = ["0" * 64, "0" * 63 + "1", "f" * 64]
    records = [
        ConvertedRecord(key, key, key, 2, 2, [segment], 0, phash=phash)
        for key, phash in zip(["s/a", "s/b", "s/c"], hashes, strict=True)
    ]
    table = listed_split(path, [record.key for record in records], [0, 1, 2])
    with pytest.raises(InputDataError, match="near-duplicate"):
        audit_split(records, table, max_distance=4)
    video = listed_split(path, [record.key for record in records], [0, 1, 0])
    with pytest.raises(InputDataError, match="both train and val"):
        audit_split(records, video, max_distance=0)
