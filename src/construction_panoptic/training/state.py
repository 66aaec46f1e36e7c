"""Checkpoints, of plain data and copied tensors for ``weights_only=True``, and the state of the random generators."""

import logging
import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

Checkpoint = dict[str, Any]


def snapshot(value: Any) -> Any:
    """Copy a state: tensors cloned to the CPU, mappings as dicts, tuples as lists, scalars as they are."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, str):
        return sys.intern(value)  # pickle tells equal strings from the same one: files would differ
    if isinstance(value, Mapping):
        return {snapshot(key): snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def random_state() -> dict[str, Any]:
    """The state of the generators of torch (CPU and CUDA), numpy and Python, as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],  # type: ignore[union-attr]
        "python": [version, list(words), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators in a state that `random_state` gave; states of absent CUDA devices are left out."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, index)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@contextmanager
def own_randomness(start: int | Mapping[str, Any]) -> Iterator[None]:
    """Run a block with the generators seeded, or in a state of `random_state`, and give the caller its own back."""
    before = random_state()
    try:
        if isinstance(start, int):
            torch.manual_seed(start)
            np.random.seed(start % 2**32)  # noqa: NPY002
            random.seed(start)
        else:
            set_random_state(start)
        yield
    finally:
        set_random_state(before)


def differing(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two nested dicts differ, as dotted paths."""
    names, absent = list[str](), object()
    for key in sorted({*stored, *current}, key=str):
        left, right = stored.get(key, absent), current.get(key, absent)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += differing(left, right, f"{prefix}{key}.")
        elif left != right:
            names.append(f"{prefix}{key}")
    return names


def resumable(resume: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> bool:
    """Whether training can go on from a checkpoint, of this format and with the same fingerprint; else warn."""
    if resume.get("format_version") != FORMAT_VERSION:
        logger.warning(
            "The checkpoint has format %s, not %s: training starts over.", resume.get("format_version"), FORMAT_VERSION
        )
        return False
    names = differing(resume["fingerprint"], snapshot(fingerprint))
    if names:
        logger.warning("The checkpoint was made with other %s: training starts over.", ", ".join(names))
        return False
    return True


def improved(value: float, best: float | None) -> bool:
    """Whether a value is the largest so far; NaN is less than any number."""
    return best is None or value > best or (math.isnan(best) and not math.isnan(value))
