import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split import splitting
from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.annotations.split.splitting import audit_split, split, split_digest
from construction_panoptic.errors import InputDataError

pytestmark = pytest.mark.medium


def record(key: str, phash: int, *class_ids: int) -> ConvertedRecord:
    segments = [
        Segment(position, class_id, 4, (0, 0, 2, 2), "", 0, None) for position, class_id in enumerate(class_ids, 1)
    ]
    stem = key.replace("/", "__")
    return ConvertedRecord(key, stem, f"{stem}.jpg", 8, 8, segments, 64, [], f"{phash:064x}")


def split_records(records: Sequence[ConvertedRecord], groups: list[int], **options: Any) -> pd.DataFrame:
    classes = [{segment.category_id for segment in record.segments} for record in records]
    return split([record.key for record in records], groups, classes, **options)


def sides_of_classes(table: pd.DataFrame, classes: dict[str, set[int]]) -> dict[int, set[str]]:
    sides: dict[int, set[str]] = {}
    for key, side in zip(table["key"], table["split"], strict=True):
        for class_id in classes[key]:
            sides.setdefault(class_id, set()).add(side)
    return sides


def covered(assignment: Sequence[bool], groups: dict[int, set[int]]) -> int:
    """How many classes are on both sides."""
    sides: dict[int, set[bool]] = {}
    for side, classes in zip(assignment, groups.values(), strict=True):
        for class_id in classes:
            sides.setdefault(class_id, set()).add(side)
    return sum(len(seen) == 2 for seen in sides.values())


def realistic(images: int, seed: int) -> tuple[list[str], list[int], list[set[int]]]:
    """A few common stuff classes, a long tail of things, and some groups of look-alikes."""
    generator = random.Random(seed)
    keys: list[str] = []
    groups: list[int] = []
    classes: list[set[int]] = []
    group = 0
    while len(keys) < images:
        thing = 17 + min(int(generator.expovariate(0.15)), 47)
        stuff = {class_id for class_id in range(1, 17) if generator.random() < 1.5 / class_id}
        for _ in range(generator.choice([1, 1, 1, 1, 2, 5])):
            keys.append(f"folder{thing}/{len(keys):05}.jpg")
            groups.append(group)
            classes.append({thing} | stuff)
        group += 1
    return keys, groups, classes


def test_a_realistic_set_keeps_groups_whole_covers_classes_and_the_share() -> None:
    keys, groups, classes = realistic(1500, seed=2)
    table = split(keys, groups, classes, val_fraction=0.2, seed=7)
    assert list(table.columns) == ["key", "group", "split"]
    assert list(table["key"]) == sorted(keys)
    assert dict(zip(table["key"], table["group"], strict=True)) == dict(zip(keys, groups, strict=True))
    assert table.groupby("group")["split"].nunique().max() == 1
    assert (table["split"] == "val").mean() == pytest.approx(0.2, abs=0.03)
    by_key = dict(zip(keys, classes, strict=True))
    groups_of_class: dict[int, set[int]] = {}
    for group, present in zip(groups, classes, strict=True):
        for class_id in present:
            groups_of_class.setdefault(class_id, set()).add(group)
    sides = sides_of_classes(table, by_key)
    assert {c for c, seen in groups_of_class.items() if len(seen) >= 2} == {
        c for c, seen in sides.items() if seen == {"train", "val"}
    }
    val_keys = set(table.loc[table["split"] == "val", "key"])
    for class_id, seen in groups_of_class.items():
        if len(seen) >= 30:
            images = [key for key in keys if class_id in by_key[key]]
            share = sum(key in val_keys for key in images) / len(images)
            assert share == pytest.approx(0.2, abs=0.06), class_id


def test_order_and_group_numbers_do_not_matter_but_the_seed_does() -> None:
    keys, groups, classes = realistic(300, seed=4)
    table = split(keys, groups, classes, seed=1)
    order = list(range(len(keys)))
    random.Random(9).shuffle(order)
    shuffled = split([keys[i] for i in order], [groups[i] for i in order], [classes[i] for i in order], seed=1)
    pd.testing.assert_frame_equal(table, shuffled)
    renumbered = split(keys, [1000 - group for group in groups], classes, seed=1)
    assert list(renumbered["split"]) == list(table["split"])
    assert split_digest(shuffled.iloc[::-1]) == split_digest(table)
    assert split_digest(split(keys, groups, classes, seed=2)) != split_digest(table)
    moved = table.copy()
    moved.loc[0, "split"] = "val" if moved.loc[0, "split"] == "train" else "train"
    assert split_digest(moved) != split_digest(table)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sets(st.integers(1, 7), max_size=4), min_size=2, max_size=9),
    st.sampled_from([0.1, 0.2, 0.5]),
    st.integers(0, 5),
)
@example([{2, 3}, {2, 3}, {2, 5}, {1, 2, 4, 6}, {1, 4}], 0.5, 8)  # HiGHS fails with presolve
def test_as_many_classes_as_possible_are_on_both_sides(groups: list[set[int]], val_fraction: float, seed: int) -> None:
    numbered = dict(enumerate(groups))
    best = max(
        covered(assignment, numbered)
        for assignment in itertools.product([False, True], repeat=len(groups))
        if len(set(assignment)) == 2
    )
    keys = [f"{index:02}" for index in numbered]
    table = split(keys, list(numbered), groups, val_fraction=val_fraction, seed=seed)
    assert set(table["split"]) == {"train", "val"}
    assert covered(list(table["split"] == "val"), numbered) == best


@pytest.mark.parametrize("seed", [0, 1, 5, 7])
def test_hundreds_of_rare_classes_are_covered(seed: int) -> None:
    """Sets of groups that placing one class after the other leaves with a class on one side."""
    generator = random.Random(seed)
    classes = {f"{index:03}": set(generator.sample(range(300), generator.randint(1, 3))) for index in range(400)}
    table = split(list(classes), list(range(400)), list(classes.values()), seed=0)
    images = Counter(class_id for present in classes.values() for class_id in present)
    sides = sides_of_classes(table, classes)
    assert {c for c in images if images[c] >= 2} == {c for c, seen in sides.items() if len(seen) == 2}


def test_an_odd_cycle_of_classes_cannot_be_covered_and_the_audit_says_so() -> None:
    records = [record("f/a", 0, 1, 2), record("f/b", 2**60 - 1, 2, 3), record("f/c", (2**60 - 1) << 80, 3, 1)]
    table = split_records(records, [0, 1, 2], val_fraction=0.3)
    _, facts = audit_split(records, table, max_distance=10)
    assert len(facts["classes_on_one_side"]) == 1


def test_single_group_classes_stay_in_train_where_they_can() -> None:
    classes = [{20}, {21}, {22}, {1}, {1}, {1}]
    table = split([f"{index}" for index in range(6)], list(range(6)), classes, val_fraction=0.3, seed=3)
    assert set(table.loc[:2, "split"]) == {"train"}
    assert sides_of_classes(table, dict(zip("012345", classes, strict=True)))[1] == {"train", "val"}


def test_a_huge_group_goes_to_train() -> None:
    keys = [f"{index:03}" for index in range(150)]
    table = split(keys, [0] * 100 + list(range(1, 51)), [{1}] * 150, val_fraction=0.2)
    assert set(table.loc[table["group"] == 0, "split"]) == {"train"}
    assert (table["split"] == "val").sum() == 30


def test_two_images_are_one_and_one() -> None:
    assert sorted(split(["a", "b"], [0, 1], [{1}, {2}])["split"]) == ["train", "val"]
    assert sorted(split(["a", "b"], [0, 1], [set(), set()])["split"]) == ["train", "val"]


@pytest.mark.parametrize(("keys", "groups"), [([], []), (["a"], [0]), (["a", "b", "c"], [4, 4, 4])])
def test_fewer_than_two_groups_are_refused(keys: list[str], groups: list[int]) -> None:
    with pytest.raises(InputDataError, match="at least two groups"):
        split(keys, groups, [{1}] * len(keys))


def spread_records(count: int, seed: int) -> list[ConvertedRecord]:
    generator = random.Random(seed)
    return [record(f"f/{index:03}", generator.getrandbits(256), 1, 1, 17 + index % 4) for index in range(count)]


def test_the_audit_counts_images_and_segments() -> None:
    records = spread_records(40, seed=1)
    table = split_records(records, list(range(40)))
    found, facts = audit_split(records, table, max_distance=10)
    expected: dict[str, Any] = {"class_id": 1, "groups": 40, "images_train": 32, "images_val": 8}
    expected |= {"segments_train": 64, "segments_val": 16, "on_both_sides": True}
    assert found.iloc[0].to_dict() == expected
    assert found["class_id"].tolist() == [1, 17, 18, 19, 20]
    assert found["images_val"].tolist() == [8, 2, 2, 2, 2]
    side = dict(zip(table["key"], table["split"], strict=True))
    smallest = min(
        (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()
        for one, other in itertools.combinations(records, 2)
        if side[one.key] != side[other.key]
    )
    assert facts == {
        "images": 40,
        "images_train": 32,
        "images_val": 8,
        "groups": 40,
        "largest_group": 1,
        "val_fraction": 0.2,
        "shared_groups": 0,
        "near_duplicates_across": 0,
        "smallest_distance_across": smallest,
        "classes_on_one_side": [],
    }


def test_the_audit_finds_leaks() -> None:
    records = spread_records(10, seed=2)
    twin = record("f/twin", int(records[0].phash, 16) ^ 0b1011, 1)
    table = split_records(records, list(range(10)))
    twin_row = {"key": "f/twin", "group": 77, "split": "val" if table.loc[0, "split"] == "train" else "train"}
    leaking = pd.concat([table, pd.DataFrame([twin_row])], ignore_index=True)
    with pytest.raises(InputDataError, match=r"1 pair.*(f/000.*f/twin|f/twin.*f/000).* 3 bits \(limit 3\)"):
        audit_split([*records, twin], leaking, max_distance=3)
    assert audit_split([*records, twin], leaking, max_distance=2)[1]["smallest_distance_across"] == 3
    groups = near_duplicate_groups([r.phash for r in [*records, twin]], [r.key for r in [*records, twin]], 3)
    grouped = split_records([*records, twin], groups)
    assert audit_split([*records, twin], grouped, max_distance=3)[1]["groups"] == 10


def test_large_splits_are_searched_for_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(7)
    values = [generator.getrandbits(256) for _ in range(40)]
    values += [value ^ (1 << generator.randrange(256)) for value in values] + values[:9]
    records = [record(f"f/{index:03}", value, 1) for index, value in enumerate(values)]
    rows = [{"key": r.key, "group": k, "split": generator.choice(["train", "val"])} for k, r in enumerate(records)]
    table = pd.DataFrame(rows)

    def message() -> str:
        with pytest.raises(InputDataError) as caught:
            audit_split(records, table, max_distance=1)
        return str(caught.value)

    def found(text: str) -> list[str]:
        return re.findall(r"^(\d+) pair.* differ in (\d+) bits", text)

    expected = message()
    monkeypatch.setattr(splitting, "_ALL_PAIRS", 0)
    assert found(message()) == found(expected) != []
    one_side = table.assign(split=["train" if k % 40 else "val" for k in range(len(records))])
    apart = audit_split(records, one_side, max_distance=1)[1]
    assert (apart["smallest_distance_across"], apart["near_duplicates_across"]) == (None, 0)


def test_the_audit_checks_that_table_and_records_belong_together() -> None:
    records = spread_records(6, seed=3)
    table = split_records(records, list(range(6)))
    with pytest.raises(InputDataError, match=r"'f/005'"):
        audit_split(records[:5], table, max_distance=3)
    with pytest.raises(InputDataError, match=r"'f/005'"):
        audit_split(records, table.iloc[:5], max_distance=3)
    with pytest.raises(InputDataError, match="val side has no images"):
        audit_split(records, table.assign(split="train"), max_distance=3)
    with pytest.raises(InputDataError, match="'test'"):
        audit_split(records, table.assign(split="test"), max_distance=3)
    with pytest.raises(InputDataError, match=r"group 0 \(f/000, f/001"):
        audit_split(records, table.assign(group=0), max_distance=3)
    with pytest.raises(InputDataError, match="listed twice"):
        audit_split(records, pd.concat([table, table]), max_distance=3)
