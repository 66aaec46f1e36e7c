"""Which groups of images go to val: stratified by class, with every class on both sides where it can be."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, eye_array, hstack

# Groups that one integer program may move, and the classes through which it looks for them.
_MOST_FREE = 100
_FEW_GROUPS = 20
_NODE_LIMIT = 1000


class Group(NamedTuple):
    """A group of images that stays together."""

    number: int
    size: int  # images
    images_of_class: dict[int, int]  # how many of them show each class


def place_groups(members: Sequence[Group], val_fraction: float) -> list[bool]:
    """Choose a side for each of two or more groups, True for val; of equally good ones, the earlier is placed first."""
    in_val = _stratify(members, val_fraction)
    # Positions that must not all be on one side: those of all groups, then of each class in two or more.
    rows = [[*range(len(members))], *(row for row in _positions_of_class(members).values() if len(row) >= 2)]
    # Classes that are on one side come to both, where that can be, by moving a limited number of groups at a time.
    while loose := _one_sided(rows, in_val):
        moved = _move(members, rows, in_val, _free_groups(rows, loose, len(members)), val_fraction)
        if len(_one_sided(rows, moved)) >= len(loose):
            break
        in_val = moved
    return in_val


def _stratify(members: Sequence[Group], val_fraction: float) -> list[bool]:
    """Place the groups, those of the rarest class first and large ones before small ones; True is val."""
    # Images of each class, and of all together under None.
    counts: list[Counter[int | None]] = [Counter({None: group.size}) for group in members]
    total: Counter[int | None] = Counter()
    for of_group, group in zip(counts, members, strict=True):
        of_group.update(group.images_of_class)
        total.update(of_group)
    placed: dict[bool, Counter[int | None]] = {True: Counter(), False: Counter()}

    def room(val: bool, class_id: int | None) -> tuple[float, ...]:
        """How far a side is from what it should have, by the class, then overall."""
        fraction = val_fraction if val else 1 - val_fraction
        # Rounded, so that equal fractions compare equal.
        return tuple(round(1 - placed[val][key] / (fraction * total[key]), 9) for key in (class_id, None))

    in_val = [False] * len(members)
    exclusive = _exclusive_classes(members)
    by_size = sorted(range(len(members)), key=lambda position: -members[position].size)
    for position in by_size:
        if exclusive[position]:
            placed[False].update(counts[position])
    unplaced = dict.fromkeys(position for position in by_size if not exclusive[position])
    left = Counter(class_id for position in unplaced for class_id in members[position].images_of_class)
    while unplaced:
        rarest = min(((count, class_id) for class_id, count in left.items() if count), default=(0, None))[1]
        for position in [p for p in unplaced if rarest is None or rarest in members[p].images_of_class]:
            in_val[position] = room(True, rarest) > room(False, rarest)
            placed[in_val[position]].update(counts[position])
            left.subtract(members[position].images_of_class.keys())
            del unplaced[position]
    return in_val


def _exclusive_classes(members: Sequence[Group]) -> list[int]:
    """How many classes each group has that no other group has."""
    alone = Counter(positions[0] for positions in _positions_of_class(members).values() if len(positions) == 1)
    return [alone[position] for position in range(len(members))]


def _positions_of_class(members: Sequence[Group]) -> dict[int, list[int]]:
    of_class: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(members):
        for class_id in group.images_of_class:
            of_class[class_id].append(position)
    return dict(sorted(of_class.items()))


def _one_sided(rows: Sequence[Sequence[int]], in_val: Sequence[bool]) -> list[Sequence[int]]:
    return [positions for positions in rows if len({in_val[position] for position in positions}) == 1]


def _free_groups(rows: Sequence[Sequence[int]], loose: Sequence[Sequence[int]], count: int) -> NDArray[np.bool_]:
    """Mark the groups that may move, bool [count]: all if they are few, else those near the loose classes."""
    free = np.full(count, count <= _MOST_FREE)
    near = list(loose)
    while near and free.sum() < _MOST_FREE:
        for positions in near:
            room = max(0, _MOST_FREE - int(free.sum()))
            free[[position for position in positions if not free[position]][:room]] = True
        near = [row for row in rows if len(row) <= _FEW_GROUPS and 0 < free[row].sum() < len(row)]
    return free


def _move(
    members: Sequence[Group],
    rows: Sequence[Sequence[int]],
    in_val: Sequence[bool],
    free: NDArray[np.bool_],
    val_fraction: float,
) -> list[bool]:
    """Cover as many classes as possible on both sides, near the wanted fraction and the given placement.

    An integer program. Variables: one binary a group (1 = val; only free ones may change), one slack a row
    (1 = left on one side), and the distance of val's size from the wanted one, in images.
    """
    count = len(members)
    sizes = np.array([group.size for group in members], dtype=float)
    total = sizes.sum()
    now = np.array(in_val, dtype=float)
    moves = 0.1 * sizes * (1 - 2 * now) + 0.5 * np.array(_exclusive_classes(members))
    # Covering a class is worth more than all else; the first row (both sides non-empty) has no slack.
    cost = np.concatenate([moves, np.full(len(rows), total + np.abs(moves).sum()), [1.0]])
    row = np.repeat(np.arange(len(rows)), [len(positions) for positions in rows])
    column = np.concatenate([np.array(positions) for positions in rows])
    incidence = coo_array((np.ones(len(row)), (row, column)), shape=(len(rows), count))
    slack = coo_array(eye_array(len(rows)))
    empty = coo_array((len(rows), 1))
    at_most = np.array([len(positions) - 1.0 for positions in rows])
    in_val_size = np.concatenate([sizes, np.zeros(len(rows)), [0.0]])[None]
    distance = np.eye(1, in_val_size.size, in_val_size.size - 1)
    target = val_fraction * total
    constraints = [
        LinearConstraint(hstack([incidence, slack, empty]).tocsr(), lb=1),
        LinearConstraint(hstack([incidence, -slack, empty]).tocsr(), ub=at_most),
        LinearConstraint(in_val_size - distance, ub=target),
        LinearConstraint(in_val_size + distance, lb=target),
    ]
    upper = np.concatenate([np.where(free, 1, now), [0.0], np.ones(len(rows) - 1), [np.inf]])
    lower = np.concatenate([np.where(free, 0, now), np.zeros(len(rows) + 1)])
    integrality = np.concatenate([np.ones(count + len(rows)), [0.0]])
    # Presolve makes HiGHS fail on a few programs: it refuses its own optimum, 1e-6 off a constraint.
    for presolve in (True, False):
        result = milp(
            cost,
            integrality=integrality,
            bounds=Bounds(lower, upper),
            constraints=constraints,
            # A limit on nodes, not on time: the answer stays the same on a slower machine.
            options={"node_limit": _NODE_LIMIT, "presolve": presolve},
        )
        if result.x is not None:
            return [bool(value > 0.5) for value in result.x[:count]]
    return list(in_val)
